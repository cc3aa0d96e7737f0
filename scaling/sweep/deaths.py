"""A run whose process died too often is written down as failed, by whoever saw it."""

from __future__ import annotations

from dataclasses import replace

from scaling.runs.provenance import now
from scaling.runs.record import FINAL, RunError, Status
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease


def record_death(folder: RunFolder, message: str, last_words: str) -> bool:
    """Write a dead worker's run down as failed; False when another launch has it already."""
    lease = Lease.acquire(folder.path, timeout_s=60)
    if lease is None:
        return False
    with lease:
        error = RunError("WorkerDied", message, last_words)
        record = folder.read_record()
        if record.status not in FINAL:
            cost = {**record.cost, "finished_at": now()}
            folder.write_record(
                replace(record, status=Status.failed, error=error, cost=cost), lease
            )
    return True
