"""A lease on a folder: at most one live holder, over processes and over hosts that share files.

Each acquisition creates `leases/<token>.json`, the token being one above the highest there. The
file is written aside and put in place by a hard link, which fails when the name is taken: of
two that race for a token exactly one wins, on NFS too. Files of earlier tokens are never removed,
so no late comer can win a token a second time.

The holder shows life by touching its file. Others judge its age by the clock of the file server
(they touch a file of their own beside it and compare), so the hosts' clocks do not matter. A holder
that stayed silent for its timeout may be succeeded; one whose process is gone from this machine at
once. A holder that was only asleep learns from `check()` that a higher token exists.

Between a `check()` and the write that follows it lies an instant that no plain file system closes;
such a write is one atomic rename of a result that both holders would compute alike.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaling.errors import UserError
from scaling.storage.atomic import create_json, read_json
from scaling.storage.process import is_known_dead, this_process

_FOLDER = "leases"
_RELEASED = 0.0  # the age of a lease given back: it needs no disk space to write


class LeaseLost(RuntimeError):
    """Another process holds a higher token: stop, and write nothing more."""


class Witness:
    """The lease with a token, seen by its holder and by all who write on the holder's behalf."""

    def __init__(self, folder: Path, token: int) -> None:
        self.token = token
        self._path = _path_of(folder / _FOLDER, token)

    def check(self) -> None:
        """Raises `LeaseLost` when that lease was succeeded; costs a few microseconds."""
        successor = _path_of(self._path.parent, self.token + 1)
        if successor.exists() or not self._path.exists():
            raise LeaseLost(
                f"{self._path.parent.parent} was taken over by another process: the holder of "
                f"lease {self.token} had shown no sign of life for its timeout"
            )


class Lease(Witness):
    """Held from `acquire` until `release` (or the end of a `with` block).

    `token` rises by at least one with each holder of the folder.
    """

    def __init__(self, folder: Path, token: int, timeout_s: float) -> None:
        super().__init__(folder, token)
        self._timeout_s = timeout_s
        self._released = threading.Event()
        self._heartbeat = threading.Thread(target=self._renew_until_released, daemon=True)
        self._heartbeat.start()

    @classmethod
    def acquire(cls, folder: Path, *, timeout_s: float) -> Self | None:
        """The lease on `folder` (made if absent), or None while somebody else holds it."""
        leases = folder / _FOLDER
        leases.mkdir(parents=True, exist_ok=True)
        token = _latest_token(leases)
        if token and _live_holder(leases, token, timeout_s) is not None:
            return None
        if not _create(_path_of(leases, token + 1), token + 1, timeout_s):
            return None
        return cls(folder, token + 1, timeout_s)

    def release(self) -> None:
        """Give the lease back; the next `acquire` succeeds at once. Harmless when repeated."""
        if self._released.is_set():
            return
        self._released.set()
        self._heartbeat.join()
        with suppress(FileNotFoundError):
            os.utime(self._path, (_RELEASED, _RELEASED))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _renew_until_released(self) -> None:
        while not self._released.wait(self._timeout_s / 4):
            # A server that is away for a moment must not end the heartbeat; if it stays away,
            # the lease expires, and `check` tells.
            with suppress(OSError):
                os.utime(self._path)


def holder(folder: Path, *, timeout_s: float = 60.0) -> dict[str, Any] | None:
    """Who holds `folder` now: host, pid, token, acquired_at, age_s; None when nobody does.

    `timeout_s` serves only a lease file too damaged to tell its own.
    """
    leases = folder / _FOLDER
    if not leases.is_dir():
        return None
    token = _latest_token(leases)
    return _live_holder(leases, token, timeout_s) if token else None


def _path_of(leases: Path, token: int) -> Path:
    return leases / f"{token:06d}.json"


def _latest_token(leases: Path) -> int:
    names = [path.stem for path in leases.glob("*.json")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _create(path: Path, token: int, timeout_s: float) -> bool:
    """Put a finished lease file in place; False when the token is taken."""
    content = {
        **this_process(),
        "token": token,
        "timeout_s": timeout_s,
        "acquired_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return create_json(path, content)


def _live_holder(leases: Path, token: int, timeout_s: float) -> dict[str, Any] | None:
    path = _path_of(leases, token)
    renewed_at = _modified_at(path)
    if renewed_at == _RELEASED:
        return None
    content = _content(path, token, timeout_s)
    if "pid" in content and is_known_dead(content):  # type: ignore[arg-type]
        return None
    age_s = max(0.0, _server_now(leases) - renewed_at)
    return {**content, "age_s": age_s} if age_s <= content["timeout_s"] else None


def _content(path: Path, token: int, timeout_s: float) -> dict[str, Any]:
    damaged = {"token": token, "timeout_s": timeout_s}
    try:
        content = read_json(path)
    except UserError:
        return damaged
    return content if isinstance(content, dict) and "timeout_s" in content else damaged


def _modified_at(path: Path) -> float:
    # Opening first makes an NFS client ask the server instead of its cache.
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def _server_now(leases: Path) -> float:
    """The time on the clock that stamps the lease files."""
    probe = leases / f".clock-{os.getpid()}-{threading.get_ident()}"
    try:
        probe.touch()
    except OSError:
        # A mere reader (somebody else's store, a read-only mount): its own clock must do. It can
        # take no lease on that judgment, as no lease file can be made here either.
        return time.time()
    now = _modified_at(probe)
    probe.unlink(missing_ok=True)
    return now
