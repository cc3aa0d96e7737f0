"""kill -9 at the moments that matter: between a file and the next that speaks of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.activations.build import prepare
from scaling.runs.record import Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.sweep.planner import make_plan
from tests.compose import tiny
from tests.integration import end_phase

ROOT = Path(__file__).parents[2]


def planned(tmp_path: Path, *overrides: str) -> RunFolder:
    config = tiny("checkpoint.every_tokens=2_560", "logger.every_tokens=2_560", *overrides)
    spec = prepare(config.activations, tmp_path / "data", progress=lambda _: None)
    plan = make_plan(config, spec)
    folder = SweepStore(tmp_path / "runs" / "default").folder(plan.run_id)
    folder.prepare(plan.to_json())
    return folder


def killed_at(folder: RunFolder, point: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.integration.end_phase", str(folder.path), point],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = planned(tmp_path_factory.mktemp("straight"))
    assert end_phase.take_up(folder)["status"] is Status.done
    return folder


@pytest.mark.parametrize("point", end_phase.POINTS)
def test_the_next_attempt_completes_from_a_checkpoint(
    tmp_path: Path, undisturbed: RunFolder, point: str
) -> None:
    folder = planned(tmp_path)
    killed_at(folder, point)
    assert folder.status() is Status.running
    left_aside = list(folder.path.rglob(".*.tmp"))
    assert bool(left_aside) == ("half written" in point)

    answer = end_phase.take_up(folder)
    record = folder.read_record()
    assert (answer["status"], record.status) == (Status.done, Status.done)
    assert record.cost["resumed_at_step"] == (10 if point == "checkpoint half written" else 30)
    assert record.cost["attempts"] == 2
    assert record.result == undisturbed.read_record().result
    assert files_of(folder) == files_of(undisturbed)
    weights = [f.path / "weights" / "rank_00000.safetensors" for f in (folder, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def files_of(folder: RunFolder) -> set[str]:
    paths = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*")}
    return {path for path in paths if not path.startswith("leases/")}
