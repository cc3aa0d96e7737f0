"""The fake runner in a worker whose leases exclude nobody."""

import os
from pathlib import Path

from fake_runs import run

from scaling.storage.lease import Lease

__all__ = ["run"]

_acquire = Lease.acquire


def _acquire_apart(folder: Path, *, timeout_s: float) -> Lease | None:
    return _acquire(folder / f"apart-{os.getpid()}", timeout_s=timeout_s)


Lease.acquire = _acquire_apart
