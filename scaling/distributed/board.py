"""What the nodes of a run tell each other while it is in hand: a key-value store at the first node.

Files on a shared disk would do, but for the seconds that a network file system may hide a new one,
and for this: the store is gone when the first node is, and all others notice.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import Store, TCPStore  # type: ignore[reportPrivateImportUsage]

from scaling.distributed.ranks import Ended
from scaling.errors import UserError
from scaling.runs.record import RunError

MEET_WITHIN = timedelta(seconds=300)
ANSWER_WITHIN = timedelta(seconds=60)


@dataclass(frozen=True)
class Try:
    """What a node needs to know to start its ranks."""

    number: int
    """From 1, within one supervisor."""
    attempt: Path
    token: int


class Board:
    """One connection to the store. Calls raise `torch.distributed.DistError` or `RuntimeError` when
    the first node is gone."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._beats: dict[int, tuple[str, float]] = {}

    @classmethod
    def at(cls, host: str, port: int) -> Board:
        return cls(connect(host, port))

    def announce(self, told: Try) -> None:
        self._write(f"try/{told.number}", asdict(told) | {"attempt": str(told.attempt)})

    def read_try(self, number: int) -> Try | None:
        row = self._read(f"try/{number}")
        return row and Try(row["number"], Path(row["attempt"]), row["token"])

    def end_try(self, number: int) -> None:
        """Have all nodes end their ranks."""
        self._write(f"try/{number}/over", True)

    def is_over(self, number: int) -> bool:
        return bool(self._read(f"try/{number}/over"))

    def report(self, number: int, node: int, ended: Ended) -> None:
        self._write(f"try/{number}/node/{node}", _plain(ended))

    def read_report(self, number: int, node: int) -> Ended | None:
        row = self._read(f"try/{number}/node/{node}")
        return row and _ended(row)

    def wish_to_stop(self) -> None:
        self._write("stop", True)

    def is_stop_wished(self) -> bool:
        return bool(self._read("stop"))

    def close(self, exit_code: int) -> None:
        """The run is over: all nodes end with this code."""
        self._write("end", [exit_code])

    def read_end(self) -> int | None:
        row = self._read("end")
        return row and row[0]

    def leave(self, node: int) -> None:
        self._write(f"left/{node}", True)

    def has_left(self, node: int) -> bool:
        return bool(self._read(f"left/{node}"))

    def beat(self, node: int) -> None:
        """Show life."""
        self._write(f"alive/{node}", time.time())

    def silent_s(self, node: int) -> float:
        """Since this node saw a new sign of life of another, by its own clock."""
        beat = json.dumps(self._read(f"alive/{node}"))
        seen, since_s = self._beats.get(node, ("", 0.0))
        if seen != beat:
            since_s = time.monotonic()
            self._beats[node] = (beat, since_s)
        return time.monotonic() - since_s

    def _write(self, key: str, value: Any) -> None:
        self._store.set(key, json.dumps(value))

    def _read(self, key: str) -> Any:
        """None for a key that is not there."""
        return json.loads(self._store.get(key)) if self._store.check([key]) else None


def connect(host: str, port: int) -> TCPStore:
    """Another connection: a call that waits holds up all others of its connection.

    Raises:
        UserError: there is no store to connect to.
    """
    try:
        store = TCPStore(host, port, is_master=False, timeout=MEET_WITHIN)
    except RuntimeError as error:
        raise UserError(
            f"--rendezvous {host}:{port} cannot be reached ({error}). Start node 0 there, within "
            f"{MEET_WITHIN.total_seconds():.0f} s of the others."
        ) from error
    store.set_timeout(ANSWER_WITHIN)
    return store


def serve(port: int) -> TCPStore:
    """The store, for as long as what is returned is kept. Port 0: any that is free."""
    return TCPStore("127.0.0.1", port, is_master=True, timeout=ANSWER_WITHIN)


def _plain(ended: Ended) -> dict[str, Any]:
    return {"exits": list(ended.exits.items()), "problem": ended.problem and asdict(ended.problem)}


def _ended(row: dict[str, Any]) -> Ended:
    return Ended(dict(row["exits"]), row["problem"] and RunError(**row["problem"]))
