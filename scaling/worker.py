"""A process that trains one run after another: `python -m scaling.worker`.

It reads commands from stdin and answers with events on stdout, one JSON object a line:

    {"run": FOLDER, "lease_timeout_s": S}   ->  held | started, progress..., finished

It imports torch once, before its first run. SIGTERM, or the end of stdin (its parent is gone),
makes the run in hand write a checkpoint and end as `preempted`. Everything else that is printed
goes to stderr, so that no library can garble the events.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from scaling.errors import UserError
from scaling.runs.provenance import now, provenance
from scaling.runs.record import FINAL, Record, RunError, RunOutcome, Status, problems_of
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease, LeaseLost

Report = Callable[[dict[str, Any]], None]
Runner = Callable[[RunFolder, Lease, Report, Callable[[], bool]], RunOutcome]
"""(folder, lease, report, stop) -> outcome. Reports its rows of metrics as it goes, and ends as
`preempted`, after a checkpoint, soon after `stop()` turns true."""

DEFAULT_RUNNER = "scaling.runner:run"
_REPORT_EVERY_S = 0.25


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runner", default=DEFAULT_RUNNER, help="module:function that trains")
    options = parser.parse_args(arguments)
    channel = Channel()
    runner = _load(options.runner)
    channel.send(event="ready")
    for command in iter(channel.commands.get, None):
        if channel.stop.is_set():
            break
        folder = RunFolder(Path(command["run"]))
        channel.send(run_id=folder.run_id, **take_up(folder, command, runner, channel))
    return 0


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


class Channel:
    """A parent beyond stdin and stdout: commands in, events out, and the wish to stop."""

    def __init__(self) -> None:
        self.stop = StopWish()
        self.commands: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._events = _reserve_stdout()
        signal.signal(signal.SIGTERM, lambda _signal, _frame: self._wish_to_stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and says so by SIGTERM
        threading.Thread(target=self._read_commands, daemon=True).start()

    def send(self, **event: Any) -> None:
        line = json.dumps(event) + "\n"
        # With the parent gone there is nobody to tell; the end of stdin says so too.
        with suppress(BrokenPipeError):
            os.write(self._events, line.encode())

    def _read_commands(self) -> None:
        for line in sys.stdin:
            self.commands.put(json.loads(line))
        self._wish_to_stop()

    def _wish_to_stop(self) -> None:
        self.stop.set()
        self.commands.put(None)


def _reserve_stdout() -> int:
    """A descriptor of the real stdout; from now on printing goes to stderr."""
    events = os.dup(1)
    os.dup2(2, 1)
    return events


def _load(name: str) -> Runner:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def take_up(
    folder: RunFolder, command: dict[str, Any], runner: Runner, channel: Parent
) -> dict[str, Any]:
    """Run `folder` unless somebody else does or did; the event that tells."""
    try:
        lease = Lease.acquire(folder.path, timeout_s=command["lease_timeout_s"])
        if lease is None:
            return {"event": "held"}
        with lease:
            record = folder.read_record()
            if record.status not in FINAL:
                record = _attempt(folder, record, lease, runner, channel)
    except LeaseLost:
        return {"event": "held"}
    except (UserError, OSError) as error:
        # Not even the record could be written: it keeps its last status, and this line is all.
        return {"event": "finished", "status": Status.failed, "message": str(error)}
    # What a crash inside a native library left behind must not reach the next run.
    retire = record.error is not None and record.error.type != UserError.__name__
    return {"event": "finished", "status": record.status, "retire": retire}


def _attempt(
    folder: RunFolder, before: Record, lease: Lease, runner: Runner, channel: Parent
) -> Record:
    """Train, and write down what came of it. A final run's checkpoints go last of all."""
    channel.send(event="started", run_id=folder.run_id)
    started = time.monotonic()
    attempts = before.cost.get("attempts", 0) + 1
    cost = {**before.cost, **provenance(), "started_at": now(), "attempts": attempts}
    running = replace(before, status=Status.running, error=None, cost=cost)
    after = running.with_outcome(_outcome(running, folder, lease, runner, channel))
    wall_s = before.cost.get("wall_s", 0.0) + time.monotonic() - started
    after = replace(after, cost={**after.cost, "wall_s": wall_s, "finished_at": now()})
    after = replace(after, warnings=after.warnings + problems_of(after))
    folder.write_record(after, lease)
    if after.status in FINAL:
        folder.remove_checkpoints()
    return after


def _outcome(
    running: Record, folder: RunFolder, lease: Lease, runner: Runner, channel: Parent
) -> RunOutcome:
    """What the runner made of the run; whatever goes wrong on the way is a failure with a name."""
    try:
        folder.write_record(running, lease)
        folder.clean()
        outcome = runner(folder, lease, _reporter(folder, channel), channel.stop.is_set)
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


if __name__ == "__main__":
    sys.exit(main())
