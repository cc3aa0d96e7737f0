"""What a worker writes down about an attempt, whatever became of it."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling import take_up
from scaling.errors import UserError
from scaling.runs.record import RunError, RunOutcome, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.lease import Lease


class Channel:
    def __init__(self) -> None:
        self.stop = threading.Event()

    def send(self, **event: Any) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = SweepStore(tmp_path / "grid").folder("ab12")
    folder.prepare({"x": 1})
    return folder


def _take_up(folder: RunFolder, runner: Callable[..., RunOutcome]) -> dict[str, Any]:
    return take_up.take_up(folder, {"lease_timeout_s": 60.0}, runner, Channel())


def _returning(outcome: RunOutcome) -> Callable[..., RunOutcome]:
    return lambda *_: outcome


@pytest.mark.parametrize("error", [PermissionError("no"), UserError("x=1 is bad")])
def test_what_fails_before_the_runner_is_recorded(folder: RunFolder, monkeypatch, error: Exception):
    def fail(_folder: RunFolder) -> None:
        raise error

    monkeypatch.setattr(RunFolder, "clean", fail)
    answer = _take_up(folder, _returning(RunOutcome(Status.done)))
    assert answer["status"] is Status.failed
    assert answer["retire"] is isinstance(error, OSError)
    record = folder.read_record()
    assert record.status is Status.failed
    assert (record.error.type, record.error.message) == (type(error).__name__, str(error))


def test_a_failed_attempt_keeps_what_is_known_of_it(folder: RunFolder):
    error = RunError("RuntimeError", "out of luck", "Traceback")
    known = RunOutcome(Status.failed, {"steps": 7}, {"train_s": 2.0}, ["w"], error)
    assert _take_up(folder, _returning(known))["retire"] is True
    record = folder.read_record()
    assert (record.status, record.error, record.warnings) == (Status.failed, error, ["w"])
    assert (record.result, record.cost["train_s"]) == ({"steps": 7}, 2.0)

    def fail(*_: object) -> RunOutcome:
        raise KeyError("data")

    _take_up(folder, fail)  # an attempt that knows nothing forgets nothing
    record = folder.read_record()
    assert (record.error.type, record.warnings) == ("KeyError", ["w"])
    assert 'raise KeyError("data")' in record.error.traceback
    assert (record.result, record.cost["train_s"]) == ({"steps": 7}, 2.0)


def test_attempts_count_starts_not_leases(folder: RunFolder):
    for _ in range(3):  # as others take it for a moment, to write a death down
        Lease.acquire(folder.path, timeout_s=60).release()
    for attempts in (1, 2):
        _take_up(folder, _returning(RunOutcome(Status.preempted)))
        assert folder.read_record().cost["attempts"] == attempts


def test_checkpoints_go_only_after_the_record_says_so(folder: RunFolder, monkeypatch):
    seen: list[Status] = []
    monkeypatch.setattr(RunFolder, "remove_checkpoints", lambda run: seen.append(run.status()))
    for status in (Status.preempted, Status.failed, Status.diverged):
        _take_up(folder, _returning(RunOutcome(status)))
    assert seen == [Status.diverged]


def test_a_wish_to_stop_may_interrupt_another():
    """Two may send SIGTERM at once: the handler must stand being interrupted by itself."""
    assert ends_when_interrupted_by_itself(take_up.StopWish())
    assert not ends_when_interrupted_by_itself(threading.Event())  # which holds a lock meanwhile


def ends_when_interrupted_by_itself(flag: take_up.StopWish | threading.Event) -> bool:
    """Set the flag again where setting it first returns from anything."""
    interrupted: list[bool] = []
    ended = threading.Event()

    def trace(_frame: Any, event: str, _argument: Any) -> Any:
        if event == "return" and not interrupted:
            interrupted.append(True)
            flag.set()
        return trace

    def run() -> None:
        sys.settrace(trace)
        flag.set()
        sys.settrace(None)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    return ended.wait(2)
