"""Stopping a sweep from outside: who launches it, and the wish that all of them end.

    RUNS_DIR/SWEEP/launches/HOST-PID.json   a launch that works on the sweep now
    RUNS_DIR/SWEEP/stop.json                the last wish to stop

A wish has a name of its own. Whatever works on the sweep remembers the name it found when it began,
and ends in order once another one stands there; later launches are not concerned. That needs no
common clock, only files that all hosts see.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from scaling.errors import UserError
from scaling.runs.provenance import now
from scaling.runs.store import SweepStore
from scaling.storage.atomic import read_json, write_json
from scaling.storage.process import ProcessId, is_known_dead, this_process
from scaling.sweep.interrupt import Interrupts

LOOK_EVERY_S = 1.0


def request_stop(store: SweepStore) -> None:
    """Ask all that work on the sweep, on whatever host, to checkpoint and end."""
    write_json(store.path / "stop.json", {"wish": secrets.token_hex(8), "requested_at": now()})


def last_wish(store: SweepStore) -> str | None:
    """The name of the last wish to stop; None if there was none."""
    with suppress(FileNotFoundError, UserError, KeyError, TypeError):
        return read_json(store.path / "stop.json")["wish"]
    return None


@contextmanager
def announced(store: SweepStore) -> Iterator[None]:
    """Within the block, `launches_of` shows this process."""
    me = this_process()
    path = store.path / "launches" / f"{me['host']}-{me['pid']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**me, "started_at": now()})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()


def launches_of(store: SweepStore) -> list[ProcessId]:
    """Launches that work on the sweep; those of other hosts as they announced themselves.

    A launch that was killed on this machine is forgotten.
    """
    found: list[ProcessId] = []
    for path in sorted((store.path / "launches").glob("*.json")):
        content = _read(path)
        if content is not None and is_known_dead(content):
            path.unlink(missing_ok=True)
        elif content is not None:
            found.append(content)
    return found


@contextmanager
def heeding(store: SweepStore, interrupts: Interrupts) -> Iterator[None]:
    """Within the block, a wish to stop counts as a SIGTERM."""
    ended = threading.Event()
    before = last_wish(store)

    def look() -> None:
        while not ended.wait(LOOK_EVERY_S):
            if last_wish(store) != before:
                interrupts.ask_to_end()
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _read(path: Any) -> ProcessId | None:
    with suppress(FileNotFoundError, UserError):
        content = read_json(path)
        if isinstance(content, dict) and {"host", "machine", "pid", "pid_started"} <= set(content):
            return content  # type: ignore[return-value]
    return None
