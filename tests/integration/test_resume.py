"""Killed at any step, a run ends with the bits of an undisturbed one."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scaling.activations.build import prepare
from scaling.errors import UserError
from scaling.plan import RunPlan
from scaling.runs.record import RunError, RunOutcome, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.lease import Lease
from scaling.sweep.planner import make_plan
from scaling.train import guard, run, shared_folder
from scaling.train.checkpoint import Checkpoints, write_tensors
from scaling.train.run import train_run
from scaling.train.shard_files import read_tensors
from tests.compose import TINY, tiny
from tests.unit.activations.stores import extend_store

ROOT = Path(__file__).parents[2]
OFTEN = ["checkpoint.every_tokens=1_024", "logger.every_tokens=512"]


def planned(tmp_path: Path, *overrides: str) -> tuple[RunPlan, RunFolder]:
    config = tiny(*OFTEN, *overrides)
    spec = prepare(config.activations, tmp_path / "data", progress=lambda _: None)
    plan = make_plan(config, spec)
    folder = SweepStore(tmp_path / "runs" / config.sweep_name).folder(plan.run_id)
    folder.prepare(plan.to_json())
    return plan, folder


def attempt(folder: RunFolder, *, stop_after_rows: int | None = None) -> RunOutcome:
    rows: list[dict[str, Any]] = []
    lease = Lease.acquire(folder.path, timeout_s=30)
    assert lease is not None
    with lease:
        return train_run(
            folder,
            lease,
            rows.append,
            lambda: stop_after_rows is not None and len(rows) >= stop_after_rows,
        )


def comparable(folder: RunFolder) -> list[dict[str, Any]]:
    """Metric rows without what a clock wrote."""
    return [
        {key: value for key, value in row.items() if not key.startswith("perf/")}
        for row in folder.metrics()
    ]


@pytest.mark.parametrize("bad_losses", [[], ["train.on_bad_loss=skip", "train.spike_factor=1.01"]])
def test_a_stopped_run_resumes_to_the_bit(
    tmp_path: Path, bad_losses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A short memory, so that so short a run has spikes.
    monkeypatch.setattr(guard, "REMEMBERED", 4)
    monkeypatch.setattr(guard, "JUDGED_FROM", 2)
    _, straight = planned(tmp_path / "straight", *bad_losses)
    _, broken = planned(tmp_path / "broken", *bad_losses)
    expected = attempt(straight)
    for rows in (5, 12):
        assert attempt(broken, stop_after_rows=rows).status is Status.preempted
    found = attempt(broken)
    assert found.result == expected.result
    assert found.cost["resumed_at_step"] > 0
    assert comparable(broken) == comparable(straight)
    skipped = [row.get("train/skipped_steps", 0) for row in straight.metrics()]
    assert (skipped[-1] > skipped[4] > 0) == bool(bad_losses)  # before and after the first stop
    weights = [f.path / "weights" / "rank_00000.safetensors" for f in (straight, broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert broken.checkpoints_path.exists()  # until the record says done


def test_a_lost_checkpoint_would_be_noticed(tmp_path: Path) -> None:
    """The comparison can fail: a resume without the optimizer's moments ends elsewhere."""
    _, straight = planned(tmp_path / "straight")
    _, broken = planned(tmp_path / "broken")
    expected = attempt(straight)
    attempt(broken, stop_after_rows=5)
    newest = sorted(broken.checkpoints_path.glob("step_*"))[-1]
    _zero_moments(newest)
    assert attempt(broken).result != expected.result


def _zero_moments(checkpoint: Path) -> None:
    manifest, state = read_tensors(checkpoint)
    for name in state:
        if name.endswith(".exp_avg"):
            state[name].zero_()
    facts = {"run_id": manifest["run_id"], "step": manifest["step"]}
    write_tensors(checkpoint, state, facts, manifest["n_latents"])


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "no manifest", "other step", "other run", "moved"]
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    _, straight = planned(tmp_path / "straight")
    _, broken = planned(tmp_path / "broken")
    expected = attempt(straight)
    attempt(broken, stop_after_rows=9)
    newest = sorted(broken.checkpoints_path.glob("step_*"))[-1]
    state = newest / "rank_00000.safetensors"
    content = bytearray(state.read_bytes())
    match damage:
        case "flip":
            content[-100] ^= 1
            state.write_bytes(content)
        case "truncate":
            state.write_bytes(content[:-1])
        case "no manifest":
            (newest / "manifest.json").unlink()
        case "other step":
            _edit(newest / "manifest.json", '"step": ', '"step": 1')
        case "other run":
            manifest, tensors = read_tensors(newest)
            facts = manifest | {"run_id": "ffffffffffff"}
            write_tensors(newest, tensors, facts, manifest["n_latents"])
        case _:
            newest.rename(newest.with_name("step_00000999"))
    found = attempt(broken)
    assert any("passed over" in warning for warning in found.warnings)
    assert found.result == expected.result


def _edit(path: Path, was: str, becomes: str) -> None:
    assert was in path.read_text()
    path.write_text(path.read_text().replace(was, becomes))


def test_other_hardware_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = planned(tmp_path)
    attempt(folder, stop_after_rows=5)
    monkeypatch.setattr(run, "fingerprint", lambda *_: "another machine")
    outcome = attempt(folder)
    assert outcome.cost["bit_exact"] is False
    assert any("another machine" in warning for warning in outcome.warnings)


def test_another_mesh_is_recorded(tmp_path: Path) -> None:
    _, folder = planned(tmp_path)
    attempt(folder, stop_after_rows=5)
    newest = sorted(folder.checkpoints_path.glob("step_*"))[-1]
    manifest, tensors = read_tensors(newest)
    assert manifest["mesh"] == {"dp": 1, "latent": 1}
    facts = manifest | {"mesh": {"dp": 2, "latent": 4}}
    write_tensors(newest, tensors, facts, manifest["n_latents"])
    outcome = attempt(folder)
    assert outcome.status is Status.done
    assert outcome.cost["bit_exact"] is False
    (warning,) = outcome.warnings
    assert "dp=1 latent=1" in warning
    assert "dp=2 latent=4" in warning


def test_what_follows_from_an_inexact_checkpoint_is_inexact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = planned(tmp_path)
    attempt(folder, stop_after_rows=5)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(run, "fingerprint", lambda *_: "another machine")
        attempt(folder, stop_after_rows=5)
    assert folder.status() is Status.planned  # a kill would leave no word of it in the record
    assert attempt(folder, stop_after_rows=1).cost["bit_exact"] is False
    assert attempt(folder).cost["bit_exact"] is False  # though the last two are of one machine


def test_a_failure_tells_how_far_the_attempt_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = planned(tmp_path)
    attempt(folder, stop_after_rows=5)
    monkeypatch.setattr(run, "fingerprint", lambda *_: "another machine")

    def fail(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(Checkpoints, "save", fail)
    outcome = attempt(folder)
    assert outcome.status is Status.failed
    assert outcome.error == RunError("UserError", "the disk is full")
    assert outcome.result["steps"] > outcome.cost["resumed_at_step"] > 0
    assert outcome.result["tokens"] == outcome.result["steps"] * plan.train.batch_tokens
    assert outcome.cost["train_s"] > 0
    assert outcome.cost["bit_exact"] is False
    assert len(outcome.warnings) == 1


def test_a_full_disk_in_the_background_fails_the_run_and_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = planned(tmp_path)
    attempt(folder, stop_after_rows=5)
    before = sorted(folder.checkpoints_path.iterdir())

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(shared_folder, "write_tensor_file", refuse)
        outcome = attempt(folder)
    assert outcome.status is Status.failed
    assert outcome.error is not None
    assert outcome.error.type == "UserError"
    assert "the disk is full while writing" in outcome.error.message
    assert sorted(folder.checkpoints_path.iterdir()) == before
    assert attempt(folder).cost["resumed_at_step"] == int(before[-1].name[5:])


def test_divergence_is_a_result(tmp_path: Path) -> None:
    _, folder = planned(tmp_path, "train.lr=1e18")
    outcome = attempt(folder)
    assert outcome.status is Status.diverged
    assert outcome.result["normalized_mse"] is None


def test_a_run_goes_on_after_its_data_has_moved(tmp_path: Path) -> None:
    extend_store(tmp_path / "here", n_train=300, n_eval=100)

    def planned_at(store: Path) -> RunFolder:
        config = tiny(*OFTEN, "activations=store", f"activations.path={store}",
                      "activations.max_tokens=300", "activations.eval_tokens=100")  # fmt: skip
        plan = make_plan(config, prepare(config.activations, tmp_path, progress=lambda _: None))
        folder = SweepStore(tmp_path / "runs").folder(plan.run_id)
        folder.prepare(plan.to_json())
        return folder

    folder = planned_at(tmp_path / "here")
    attempt(folder, stop_after_rows=5)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(UserError):
        attempt(folder)
    again = planned_at(tmp_path / "there")
    assert again == folder
    outcome = attempt(again)
    assert outcome.status is Status.done
    assert outcome.cost["resumed_at_step"] > 0


def launch(runs_dir: Path, *overrides: str) -> subprocess.Popen[str]:
    # Two folders are planned apart: which native matmul is fastest is measured for each.
    numbers = ["train.tokens=409_600", "kernels=torch"]
    arguments = [*TINY, *OFTEN, *numbers, f"runs_dir={runs_dir}", *overrides]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=runs_dir.parent,
    )


def only_record(runs_dir: Path) -> dict[str, Any]:
    (path,) = runs_dir.glob("default/*/record.json")
    return json.loads(path.read_text())


def test_kill_minus_nine_of_everything_then_the_next_call_completes(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for runs_dir in (straight, broken):
        runs_dir.mkdir()
    assert launch(straight).wait(120) == 0
    victim = launch(broken)
    _kill_after_a_checkpoint(victim, broken)
    assert only_record(broken)["status"] == "running"
    assert launch(broken).wait(120) == 0
    found, expected = only_record(broken), only_record(straight)
    assert found["result"] == expected["result"]
    assert found["cost"]["resumed_at_step"] > 0
    before = (broken / "default").stat().st_mtime_ns
    assert launch(broken).wait(60) == 0  # a third call does nothing
    assert only_record(broken) == found
    assert (broken / "default").stat().st_mtime_ns == before


def _kill_after_a_checkpoint(victim: subprocess.Popen[str], runs_dir: Path) -> None:
    """kill -9 of launch and workers together, at a random moment after the first checkpoint."""
    deadline = time.monotonic() + 60
    while not list(runs_dir.glob("default/*/checkpoints/step_*")):
        assert time.monotonic() < deadline
        assert victim.poll() is None
        time.sleep(0.005)
    time.sleep(random.random() * 0.3)
    workers = _children(victim.pid)
    for pid in (victim.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    victim.wait()


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
