"""Stopped on one mesh, taken up on the same or another: to the bit, or to rounding and said so."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.distributed.build import build_on_mesh
from scaling.plan import RunPlan
from scaling.runs.record import RunOutcome, Status
from scaling.runs.store import RunFolder
from scaling.train.mesh import Mesh
from scaling.train.run import Attempt
from scaling.train.shard_files import read_tensors
from tests.integration.test_resume import planned
from tests.ranks import run_ranks, run_threads


@dataclass
class NoLease:
    """Nobody else is near."""

    checks: list[None] = field(default_factory=list)

    def check(self) -> None:
        self.checks.append(None)


def attempt_on(mesh: Mesh, path: Path, stop_after: int | None = None) -> RunOutcome:
    """One rank's attempt; stops after so many steps of its own."""
    folder, steps = RunFolder(path), 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_after

    plan = RunPlan.from_json(folder.read_plan())
    attempt = Attempt(plan, folder, NoLease(), lambda _: None, stop, mesh, build_on_mesh)  # type: ignore[arg-type]
    return attempt.carry_out()


def on(folder: Path, dp: int, latent: int, engine: str, name: str = "run") -> RunFolder:
    """The run, planned for that mesh; a plan that is there is renewed."""
    _, planned_run = planned(folder / name, f"mesh.dp={dp}", f"mesh.latent={latent}", engine)
    return planned_run


def weights_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    return read_tensors(folder.path / "weights")[1]


def test_from_four_shards_to_one_to_two(tmp_path: Path) -> None:
    straight = on(tmp_path, 1, 1, "engine=torch", "straight")
    expected = run_threads(lambda mesh: attempt_on(mesh, straight.path), 1, 1)[0]
    for latent, stop_after, seen in ((4, 11, []), (1, 9, ["4"]), (2, None, ["4", "1"])):
        folder = on(tmp_path, 1, latent, "engine=torch")
        outcomes = run_threads(
            lambda mesh, path=folder.path, after=stop_after: attempt_on(mesh, path, after),
            1,
            latent,
        )
        assert outcomes[0].cost["bit_exact"] is not bool(seen)
        if seen:
            change = f"on a mesh of dp=1 latent={latent}, begun on dp=1 latent={seen[-1]}"
            assert any(change in warning for warning in outcomes[0].warnings)
            assert all(outcome.warnings == outcomes[0].warnings for outcome in outcomes)
    assert outcomes[0].status is Status.done
    assert outcomes[0].cost["resumed_at_step"] == 20
    for key, value in expected.result.items():
        close = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        assert outcomes[0].result[key] == close, key
    for name, tensor in weights_of(straight).items():
        difference = (weights_of(folder)[name] - tensor).abs().max() / tensor.abs().max()
        assert difference < 1e-5, name
    assert len(list((folder.path / "weights").glob("rank_*"))) == 2


@pytest.mark.parametrize(
    ("dp", "latent", "engine"),
    [pytest.param(2, 2, "deepspeed", marks=pytest.mark.faults), (1, 2, "fused")],
)
def test_on_the_same_mesh_to_the_bit(tmp_path: Path, dp: int, latent: int, engine: str) -> None:
    straight = on(tmp_path, dp, latent, f"engine={engine}", "straight")
    broken = on(tmp_path, dp, latent, f"engine={engine}")

    def go(folder: RunFolder, name: str, *arguments: Any) -> RunOutcome:
        (tmp_path / name).mkdir()
        return run_ranks(attempt_on, dp, latent, tmp_path / name, folder.path, *arguments)[0]

    expected = go(straight, "a")
    assert go(broken, "b", 13).status is Status.preempted
    found = go(broken, "c")
    assert found.cost["resumed_at_step"] == 13
    assert found.cost["bit_exact"] is True
    assert not found.warnings
    assert found.result == expected.result
    for path in (straight.path / "weights").glob("rank_*"):
        assert path.read_bytes() == (broken.path / "weights" / path.name).read_bytes()
