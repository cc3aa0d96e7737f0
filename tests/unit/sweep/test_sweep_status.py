import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runs import FakePlan, launch

from scaling import status
from scaling.runs.record import Record, Status
from scaling.runs.store import SweepStore
from scaling.storage.lease import Lease


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")


def _start(store: SweepStore, run_id: str) -> Lease:
    """A run half way, in the hands of this process."""
    folder = store.folder(run_id)
    lease = Lease.acquire(folder.path, timeout_s=60)
    assert lease is not None
    folder.write_record(Record(run_id, store.name, Status.running), lease)
    with folder.metrics_logger(lease, resume_at_step=0) as logger:
        logger.log({"step": 2, "tokens": 200})
    return lease


def test_status_tells_counts_results_holders_and_time_left(store: SweepStore, capsys):
    launch(store, [FakePlan("a"), FakePlan("b", misbehavior="raise")])
    store.folder("c").prepare(FakePlan("c", steps=4).to_json())
    store.folder("d").prepare(FakePlan("d").to_json())
    with _start(store, "c"):
        assert status.main([str(store.path)]) == 0
        text = capsys.readouterr().out
    assert "4 runs: 1 done, 1 running, 1 failed, 1 planned; about " in text
    assert "0.2500" in text
    assert "c  at 50%  on " in text
    assert "b  RuntimeError: a fault of this run" in text
    assert status.main([str(store.path)]) == 0
    text = capsys.readouterr().out
    assert "4 runs: 1 done, 1 failed, 1 abandoned, 1 planned\n" in text
    assert "c  at 50%  nobody works on it" in text


def test_time_left_is_corrected_by_what_finished_runs_took(store: SweepStore):
    launch(store, [FakePlan("a", estimated_s=1.0)])
    store.folder("b").prepare(FakePlan("b", steps=4, estimated_s=10.0).to_json())
    folder = store.folder("a")
    with Lease.acquire(folder.path, timeout_s=60) as lease:
        record = folder.read_record()
        folder.write_record(replace(record, cost={**record.cost, "wall_s": 3.0}), lease)
    sightings = [status.Sighting.of(folder) for folder in store.folders()]
    assert status.seconds_left(sightings) is None  # nobody works on it
    with _start(store, "b"):
        sightings = [status.Sighting.of(folder) for folder in store.folders()]
        assert status.seconds_left(sightings) == pytest.approx(15.0)


def test_watching_ends_with_the_last_result(store: SweepStore, capsys):
    launch(store, [FakePlan("a")])
    assert status.main([str(store.path), "--watch"]) == 0
    assert "1 runs: 1 done" in capsys.readouterr().out


def test_a_folder_that_is_no_sweep_is_told(tmp_path: Path, capsys):
    assert status.main([str(tmp_path / "nothing")]) == 2
    assert "holds no runs; give the folder of one sweep" in capsys.readouterr().err


def test_status_and_scheduling_need_no_torch():
    code = "import sys, scaling.status, scaling.sweep.execute, scaling.worker\n"
    code += "sys.exit(bool({'torch', 'wandb', 'hydra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
