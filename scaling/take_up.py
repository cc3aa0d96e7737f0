"""One run taken up: its lease, its record before and after, and all that may go wrong between.

What trains is a runner; whoever asked for the run hears of it, and may wish it to stop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from scaling.errors import UserError
from scaling.runs.provenance import now, provenance
from scaling.runs.record import FINAL, Record, RunError, RunOutcome, Status, problems_of
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease, LeaseLost
from scaling.train.course import Course, OwnTime, on_own_time

Report = Callable[[dict[str, Any]], None]
Runner = Callable[[RunFolder, Lease, Report, Callable[[], bool]], RunOutcome]
"""(folder, lease, report, stop) -> outcome. Reports its rows of metrics as it goes, and ends as
`preempted`, after a checkpoint, soon after `stop()` turns true."""
Steps = Course[RunOutcome]
Begin = Callable[[RunFolder, Lease, Report, Callable[[], bool]], Steps]
"""The same as a course (`scaling.train.course`): it asks for its batches."""

_REPORT_EVERY_S = 0.25


class StopWish:
    """A flag that a signal's handler may set.

    No threading.Event: its lock, held by a handler that a second signal interrupts, would make that
    one wait for ever. A cluster and a launch may well both tell a process to stop.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


class Parent(Protocol):
    """Whoever wants the run done: told of events, and may wish it to stop."""

    stop: StopWish

    def send(self, **event: Any) -> None: ...


def take_up(
    folder: RunFolder, command: dict[str, Any], runner: Runner, channel: Parent
) -> dict[str, Any]:
    """Run `folder` unless somebody else does or did; the event that tells."""

    def begin(*arguments: Any) -> Steps:
        yield from ()  # it asks nobody for its batches
        return runner(*arguments)

    try:
        next(taking_up(folder, command, begin, channel))
    except StopIteration as end:
        return end.value
    raise AssertionError("a runner asks for nothing")


def taking_up(
    folder: RunFolder, command: dict[str, Any], begin: Begin, channel: Parent
) -> Course[dict[str, Any]]:
    """The same as a course: it yields the steps whose batches it is to be sent."""
    try:
        if not folder.plan_path.exists():
            raise UserError(
                f"{folder.path} was removed, or its plan.json was, after the launch had begun. The "
                "same command again plans the run and does it anew."
            )
        lease = Lease.acquire(folder.path, timeout_s=command["lease_timeout_s"])
        if lease is None:
            return {"event": "held"}
        with lease:
            record = folder.read_record()
            if record.status not in FINAL:
                record = yield from _attempt(folder, record, lease, begin, channel)
    except LeaseLost:
        return {"event": "held"}
    except (UserError, OSError) as error:
        # Not even the record could be written: it keeps its last status, and this line is all.
        return {"event": "finished", "status": Status.failed, "message": str(error)}
    # What a crash inside a native library left behind must not reach the next run.
    retire = record.error is not None and record.error.type != UserError.__name__
    return {"event": "finished", "status": record.status, "retire": retire}


def _attempt(
    folder: RunFolder, before: Record, lease: Lease, begin: Begin, channel: Parent
) -> Course[Record]:
    """Train, and write down what came of it. A final run's checkpoints go last of all."""
    channel.send(event="started", run_id=folder.run_id)
    clock = OwnTime()
    attempts = before.cost.get("attempts", 0) + 1
    cost = {**before.cost, **provenance(), "started_at": now(), "attempts": attempts}
    running = replace(before, status=Status.running, error=None, cost=cost)
    outcome = yield from on_own_time(_outcome(running, folder, lease, begin, channel), clock)
    after = running.with_outcome(outcome)
    wall_s = before.cost.get("wall_s", 0.0) + clock.s
    after = replace(after, cost={**after.cost, "wall_s": wall_s, "finished_at": now()})
    after = replace(after, warnings=after.warnings + problems_of(after))
    folder.write_record(after, lease)
    if after.status in FINAL:
        folder.remove_checkpoints()
    return after


def _outcome(
    running: Record, folder: RunFolder, lease: Lease, begin: Begin, channel: Parent
) -> Steps:
    """What came of the run; whatever goes wrong on the way is a failure with a name."""
    try:
        folder.write_record(running, lease)
        folder.clean()
        report = _reporter(folder, channel)
        outcome = yield from begin(folder, lease, report, channel.stop.is_set)
    except LeaseLost:
        raise
    except Exception as error:
        known = (running.result, running.cost, running.warnings)
        outcome = RunOutcome(Status.failed, *known, error=RunError.of(error))
    if outcome.error is not None and outcome.error.traceback is not None:
        print(outcome.error.traceback, file=sys.stderr)
    return outcome


def _reporter(folder: RunFolder, channel: Parent) -> Report:
    """Sends a report on, a few times a second at most."""
    last_sent = -_REPORT_EVERY_S

    def report(row: dict[str, Any]) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent >= _REPORT_EVERY_S:
            last_sent = time.monotonic()
            channel.send(event="progress", run_id=folder.run_id, row=row)

    return report
