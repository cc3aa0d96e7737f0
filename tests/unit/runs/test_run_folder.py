import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from scaling.errors import UserError
from scaling.runs.logger import JsonlLogger, read_rows
from scaling.runs.record import Record, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.lease import Lease, LeaseLost


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = SweepStore(tmp_path / "grid").folder("ab12")
    folder.prepare({"x": 1})
    return folder


def _acquire(folder: RunFolder) -> Lease:
    lease = Lease.acquire(folder.path, timeout_s=60)
    assert lease is not None
    return lease


def _succeed(folder: RunFolder) -> Lease:
    """Take the run over from a holder that looks silent for an hour."""
    [path] = folder.path.glob("leases/*.json")
    os.utime(path, (1e9, 1e9))
    return _acquire(folder)


def test_a_prepared_run_is_planned(folder: RunFolder):
    assert folder.read_plan() == {"x": 1}
    assert folder.read_record() == Record("ab12", "grid", Status.planned)
    assert SweepStore(folder.path.parent).folders() == [folder]


def test_a_later_launch_renews_all_of_a_plan_but_its_execution(tmp_path: Path):
    folder = SweepStore(tmp_path / "grid").folder("ab12")
    folder.prepare({"execution": {"threads": 1}, "source": {"path": "/old"}, "gone": 1})
    folder.prepare({"execution": {"threads": 8}, "source": {"path": "/new"}})
    assert folder.read_plan() == {"execution": {"threads": 1}, "source": {"path": "/new"}}
    with _acquire(folder) as lease:
        folder.prepare({"source": {"path": "/newer"}})  # somebody trains by the plan there is
        assert folder.read_plan()["source"] == {"path": "/new"}
        folder.write_record(replace(folder.read_record(), status=Status.done), lease)
    folder.prepare({"source": {"path": "/newer"}})  # and by that one it was done
    assert folder.read_plan()["source"] == {"path": "/new"}


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_plan_is_named(folder: RunFolder, damage: str):
    folder.plan_path.write_text(damage)
    with pytest.raises(UserError, match=r"ab12/plan\.json"):
        folder.prepare({"x": 2})


def test_only_the_latest_holder_writes(folder: RunFolder):
    first = _acquire(folder)
    folder.write_record(replace(folder.read_record(), status=Status.running), first)
    logger = folder.metrics_logger(first, resume_at_step=0)
    logger.log({"step": 1, "tokens": 10})
    second = _succeed(folder)
    folder.write_record(replace(folder.read_record(), status=Status.done), second)
    with pytest.raises(LeaseLost):
        folder.write_record(replace(folder.read_record(), status=Status.failed), first)
    with pytest.raises(LeaseLost):
        logger.log({"step": 2, "tokens": 20})
    logger.close()
    assert folder.status() is Status.done
    assert [row["step"] for row in folder.metrics()] == [1]


def test_a_resumed_run_forgets_the_rows_after_its_checkpoint(folder: RunFolder):
    lease = _acquire(folder)
    with folder.metrics_logger(lease, resume_at_step=0) as logger:
        for step in (1, 2, 3):
            logger.log({"step": step, "tokens": step * 10})
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 4, "tok')  # cut short by a kill
    assert [row["step"] for row in folder.metrics()] == [1, 2, 3]
    with folder.metrics_logger(lease, resume_at_step=2) as logger:
        logger.log({"step": 3, "tokens": 31})
    assert folder.metrics_path.read_text() == (
        '{"step": 1, "tokens": 10}\n{"step": 2, "tokens": 20}\n{"step": 3, "tokens": 31}\n'
    )


def test_each_row_is_there_as_soon_as_it_is_logged(tmp_path: Path):
    with JsonlLogger(tmp_path / "m.jsonl") as logger:
        logger.log({"step": 1, "loss": float("nan"), "x": float("inf"), "y": 1e-300})
        text = (tmp_path / "m.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "x": None, "y": 1e-300}
    assert read_rows(tmp_path / "absent.jsonl") == []


def test_a_full_disk_while_logging_is_told():
    logger = JsonlLogger(Path("/dev/full"))
    with pytest.raises(UserError, match="disk is full while writing /dev/full"):
        logger.log({"step": 1})
    logger._file.close()


@pytest.mark.parametrize("damage", ["", "{", '{"schema_version": 1}', "[]"])
def test_a_damaged_record_is_named(folder: RunFolder, damage: str):
    folder.record_path.write_text(damage)
    with pytest.raises(UserError, match=r"ab12/record\.json"):
        folder.read_record()


def test_leftovers_of_a_killed_holder_are_removed(folder: RunFolder):
    leftover = folder.path / ".record.json.123-abcd.tmp"
    leftover.write_text("half")
    folder.clean()
    assert not leftover.exists()
    assert folder.record_path.exists()
