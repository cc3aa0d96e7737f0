import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wandb_file import read_wandb_file

from scaling.runs import wandb_mirror
from scaling.runs.record import RunError, RunOutcome, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.lease import Lease

_CONFIG = {"train": {"lr": 0.001, "tokens": 500}, "activations": {"source": "planted"}}
_RESULT = {"normalized_mse": 0.2, "l0": 4.0, "dead_fraction": None, "n_latents": 64}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepStore:
    monkeypatch.setenv("WANDB_MODE", "offline")
    return SweepStore(tmp_path / "grid")


def _row(step: int) -> dict[str, Any]:
    loss = float("nan") if step == 4 else 1 / step
    return {"tokens": step * 100, "step": step, "train/loss": loss, "eval/l0": step + 0.5}


def _write(
    folder: RunFolder, steps: Sequence[int], status: Status, *, resume_at_step: int = 0
) -> None:
    folder.prepare({"title": f"title of {folder.run_id}", "config": _CONFIG})
    lease = Lease.acquire(folder.path, timeout_s=60)
    assert lease is not None
    with lease:
        with folder.metrics_logger(lease, resume_at_step=resume_at_step) as logger:
            for step in steps:
                logger.log(_row(step))
        cost = {"finished_at": f"attempt {lease.token}", "wall_s": 1.5, "commit": None}
        cost |= {"mesh": [1, 2], "versions": {"torch": "2.13.0"}, "bit_exact": True}
        outcome = RunOutcome(status, _RESULT if status is Status.done else {}, cost)
        record = folder.read_record().with_outcome(outcome)
        if status is Status.failed:
            record = replace(record, error=RunError("RuntimeError", "x"))
        folder.write_record(record, lease)


def _mirror(store: SweepStore, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scaling.runs.wandb_mirror", str(store.path), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def _copies(store: SweepStore, run_id: str) -> list[dict[str, Any]]:
    files = sorted(store.path.glob(f"wandb/offline-run-*-{run_id}*/*.wandb"))
    return [read_wandb_file(file) for file in files]


def _history(copy: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if not key.startswith("_")}
        for row in copy["history"]
    ]


def test_the_copy_holds_what_the_files_hold_and_nothing_twice(store: SweepStore):
    done, failed, planned = (store.folder(name) for name in ("a" * 12, "b" * 12, "c" * 12))
    _write(done, range(1, 6), Status.done)
    _write(failed, (1, 2, 3, 4), Status.failed)
    planned.prepare({"config": _CONFIG})
    first = _mirror(store, "--project", "laws", "--tag", "x", "--tag", "y")
    assert (first.returncode, first.stderr) == (0, "")

    [copy] = _copies(store, done.run_id)
    assert _history(copy) == done.metrics()
    assert [row["_step"] for row in copy["history"]] == [1, 2, 3, 4, 5]
    assert copy["history"][3]["train/loss"] is None
    run = copy["run"]
    assert (run.run_id, run.run_group, run.project) == (done.run_id, "grid", "laws")
    assert (list(run.tags), run.display_name) == (["x", "y"], f"title of {done.run_id}")
    assert copy["config"].items() >= _CONFIG.items()
    assert copy["summary"].items() >= {**_RESULT, "status": "done", "wall_s": 1.5}.items()
    sent = {"mesh": "[1, 2]", "versions": '{"torch": "2.13.0"}', "bit_exact": True, "commit": None}
    assert {name: copy["summary"][name] for name in sent} == sent
    assert copy["exit_code"] == 0
    [copy] = _copies(store, failed.run_id)
    assert (_history(copy), copy["exit_code"]) == (failed.metrics(), 1)
    assert _copies(store, planned.run_id) == []

    assert _mirror(store).returncode == 0
    assert [len(_copies(store, run.run_id)) for run in (done, failed, planned)] == [1, 1, 0]

    _write(failed, (3, 4, 5, 6), Status.done, resume_at_step=2)
    assert _mirror(store).returncode == 0
    [_, second] = _copies(store, failed.run_id)
    assert [row["step"] for row in _history(second)] == [5, 6]
    assert second["summary"]["status"] == "done"
    assert len(_copies(store, done.run_id)) == 1


def test_tokens_are_the_axis_of_every_metric(store: SweepStore):
    _write(store.folder("a"), (1,), Status.done)
    assert _mirror(store).returncode == 0
    [copy] = _copies(store, "a")
    metrics = copy["metrics"]
    assert [(metric.glob_name, metric.step_metric) for metric in metrics if metric.glob_name] == [
        ("*", "tokens")
    ]


def test_rows_of_one_step_are_told_apart_from_rows_written_again():
    rows = [{"step": 1}, {"step": 2, "x": 1}, {"step": 2, "y": 1}, {"step": 3}]
    cursor = wandb_mirror.Cursor()
    assert cursor.rows_after(rows[:2]) == rows[:2]
    cursor = cursor.after(rows[:2])
    assert cursor.rows_after(rows) == rows[2:]
    assert cursor.rows_after(rows[:1]) == []  # cut back by a resume, not yet as far as before
    cursor = cursor.after(rows[2:3])
    assert (cursor.step, cursor.rows_of_step) == (2, 2)
    assert cursor.rows_after(rows) == rows[3:]


_RECORDING_WANDB = """
import json, os
class Settings(dict): pass
def note(*event):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps(event) + "\\n")
class Summary:
    def update(self, row): note("summary", row)
class Run:
    step = int(os.environ.get("STEPS_THERE", "0"))
    summary = Summary()
    def define_metric(self, *a, **k): pass
    def log(self, row, step):
        if step == int(os.environ.get("DIE_AT", "-1")): os._exit(9)
        note("log", step)
    def finish(self, exit_code): note("finish", exit_code)
def init(**options):
    note("init", {k: options[k] for k in ("id", "group", "resume", "reinit")})
    return Run()
"""


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def install(source: str) -> Path:
        folder = tmp_path / "modules"
        folder.mkdir()
        (folder / "wandb.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
        return tmp_path / "notes"

    return install


def test_a_mirror_that_crashed_sends_again_under_the_same_steps(
    store: SweepStore, fake_wandb, monkeypatch
):
    notes = fake_wandb(_RECORDING_WANDB)
    _write(store.folder("a"), range(1, 5), Status.done)
    monkeypatch.setenv("DIE_AT", "3")
    assert _mirror(store).returncode == 9
    monkeypatch.setenv("DIE_AT", "-1")
    assert _mirror(store).returncode == 0
    lines = notes.read_text().splitlines()
    assert lines[0] == (
        '["init", {"id": "a", "group": "grid", "resume": "allow", "reinit": "create_new"}]'
    )
    steps = [line for line in lines if "log" in line]
    assert steps == [f'["log", {step}]' for step in (1, 2, 1, 2, 3, 4)]
    assert lines[-1] == '["finish", 0]'


def test_what_was_evaluated_later_is_sent_once(
    store: SweepStore, fake_wandb, monkeypatch: pytest.MonkeyPatch
):
    notes = fake_wandb(_RECORDING_WANDB)
    folder = store.folder("a")
    _write(folder, (1, 2), Status.done)
    assert _mirror(store).returncode == 0
    assert not wandb_mirror.Cursor.of(folder).lacks(folder)
    assert _sent_evaluation(notes) == {}
    folder.evaluation_path.write_text(
        '{"kl": 0.125, "name": "x", "ok": true, "runs": 3,'
        ' "metrics": {"kl": {"measured_as": "0a", "standard_errors": {"kl": {"value": 0.5}},'
        ' "baselines": {"kl": {"zero": {"value": 4}}}}}, "\\ud800": 5}'
    )
    assert wandb_mirror.Cursor.of(folder).lacks(folder)
    monkeypatch.setenv("STEPS_THERE", "3")
    for _ in range(2):
        assert _mirror(store).returncode == 0
    assert _sent_evaluation(notes) == {
        "evaluation/kl": 0.125,
        "evaluation/runs": 3,
        "evaluation/kl_measured_as": "0a",
        "evaluation/kl_standard_error": 0.5,
        "evaluation/kl_of_zero": 4,
        r"evaluation/\ud800": 5,  # half a character, that no server takes
    }
    events = [json.loads(line) for line in notes.read_text().splitlines()]
    kinds = ["init", "log", "log", "summary", "finish", "init", "summary", "finish"]
    assert [event[0] for event in events] == kinds
    folder.evaluation_path.write_text("{")  # damaged: the run is sent all the same
    assert _mirror(store).returncode == 0
    assert _sent_evaluation(notes) == {}


def test_an_evaluation_that_cannot_be_read_keeps_back_nothing(store: SweepStore, fake_wandb):
    notes = fake_wandb(_RECORDING_WANDB)
    folder = store.folder("a")
    _write(folder, (1, 2), Status.done)
    folder.evaluation_path.mkdir()
    assert _mirror(store).returncode == 0
    assert _sent_evaluation(notes) == {}
    assert not wandb_mirror.Cursor.of(folder).lacks(folder)


def _sent_evaluation(notes: Path) -> dict[str, Any]:
    """Of the last summary sent."""
    events = [json.loads(line) for line in notes.read_text().splitlines()]
    *_, last = (event[1] for event in events if event[0] == "summary")
    return {name: value for name, value in last.items() if name.startswith("evaluation/")}


def test_rows_that_the_server_has_are_not_sent(store: SweepStore, fake_wandb, monkeypatch):
    notes = fake_wandb(_RECORDING_WANDB)
    _write(store.folder("a"), range(1, 5), Status.done)
    monkeypatch.setenv("STEPS_THERE", "3")
    assert _mirror(store).returncode == 0
    steps = [line for line in notes.read_text().splitlines() if "log" in line]
    assert steps == ['["log", 3]', '["log", 4]']


def test_two_mirrors_of_one_sweep_send_once(store: SweepStore, fake_wandb):
    notes = fake_wandb(_RECORDING_WANDB)
    _write(store.folder("a"), (1,), Status.done)
    with Lease.acquire(store.path / "wandb", timeout_s=60):
        answer = _mirror(store, "--follow")  # stdin is at its end
    assert not notes.exists()
    assert answer.returncode == wandb_mirror.GAVE_UP
    assert answer.stderr.strip().endswith(
        "another launch's mirror is not through; runs yet to send: 1"
    )
    assert _mirror(store).returncode == 0
    with Lease.acquire(store.path / "wandb", timeout_s=60):
        assert _mirror(store, "--follow").returncode == 0  # the other has sent all there is


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('No module named wandb')", "ImportError: No module named wandb"),
        (
            "class Settings(dict): pass\ndef init(**options): raise OSError('no route to host')",
            "OSError: no route to host",
        ),
    ],
)
def test_absent_or_unreachable_is_one_line(store: SweepStore, fake_wandb, source, reason):
    fake_wandb(source)
    _write(store.folder("a"), (1,), Status.done)
    answer = _mirror(store)
    assert answer.returncode == wandb_mirror.GAVE_UP
    assert answer.stderr.strip() == reason
    assert not (store.folder("a").path / "wandb.json").exists()
