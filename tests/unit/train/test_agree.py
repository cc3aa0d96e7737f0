"""What one rank knows, all know."""

from __future__ import annotations

import pytest

from scaling.train.agree import first_problem, fresh_token, largest
from scaling.train.mesh import ALONE, Mesh
from tests.ranks import run_threads

MESHES = [(1, 1), (2, 2), (3, 1), (1, 4)]


@pytest.mark.parametrize("shape", MESHES)
def test_all_ranks_hold_the_same(shape: tuple[int, int]) -> None:
    world_size = shape[0] * shape[1]
    found = run_threads(lambda mesh: largest(mesh, mesh.rank, "rank"), *shape)
    assert found == [world_size - 1] * world_size
    assert len(set(run_threads(lambda mesh: fresh_token(mesh, "token"), *shape))) == 1
    assert fresh_token(ALONE, "token") != fresh_token(ALONE, "token")


@pytest.mark.parametrize("failing", [(), (0,), (3,), (2, 1)])
def test_the_lowest_ranks_problem_is_told(failing: tuple[int, ...]) -> None:
    def told(mesh: Mesh) -> str | None:
        problem = f"rank {mesh.rank}: {'é' * 3_000}" if mesh.rank in failing else None
        return first_problem(mesh, problem, "test")

    (text,) = set(run_threads(told, 2, 2))
    if not failing:
        assert text is None
    else:
        assert text is not None
        assert text.startswith(f"rank {min(failing)}: é")
        assert 900 < len(text) < 3_000  # cut between characters
