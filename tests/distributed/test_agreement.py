"""All ranks stop after the same step, and do nothing before they agree on what."""

from __future__ import annotations

import pytest

from scaling.distributed.agreement import StopAgreement, agree
from scaling.errors import UserError
from scaling.train.mesh import ALONE, Mesh
from tests.ranks import run_threads

MESHES = [(1, 2), (2, 1), (2, 2), (3, 2)]
WISHED_AT = 5


def stopped_at(mesh: Mesh, wishing_rank: int) -> int:
    step = 0

    def wished() -> bool:
        return mesh.rank == wishing_rank and step >= WISHED_AT

    stop = StopAgreement(mesh, wished)
    for step in range(1, 20):  # noqa: B007
        if stop():
            break
    stop.finish()
    return step


@pytest.mark.parametrize(("dp", "latent"), MESHES)
def test_all_ranks_stop_after_the_same_step(dp: int, latent: int) -> None:
    for rank in (0, dp * latent - 1):
        steps = run_threads(lambda mesh, rank=rank: stopped_at(mesh, rank), dp, latent)
        assert steps == [WISHED_AT + 2] * (dp * latent)


def test_one_process_stops_too() -> None:
    assert stopped_at(ALONE, 0) == WISHED_AT + 2


def test_nobody_stops_unasked() -> None:
    assert run_threads(lambda mesh: stopped_at(mesh, 99), 2, 2) == [19] * 4


@pytest.mark.parametrize(("dp", "latent"), MESHES)
def test_ranks_that_differ_are_named_on_all_ranks(dp: int, latent: int) -> None:
    odd = dp * latent - 1

    def told(mesh: Mesh) -> str:
        agree(mesh, {"steps": 40}, "the plan of the run")
        with pytest.raises(UserError) as error:
            agree(mesh, {"steps": 40 + (mesh.rank == odd)}, "the plan of the run")
        return str(error.value)

    for rank, message in enumerate(run_threads(told, dp, latent)):
        assert f"the plan of the run: ranks [{odd}] do not agree with rank 0" in message
        assert f"steps={40 + (rank == odd)}" in message
