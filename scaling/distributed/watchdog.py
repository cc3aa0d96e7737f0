"""Ends a rank that waits too long, and says for what.

A collective whose partner hangs (a stopped process, a dead machine) returns late or never, and
Python cannot interrupt it. A thread beside it can: it knows the operation under way, writes it down
and ends the process. It ends it too when the try is over on another node, or when the process that
started this one is gone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.runs.record import RunError

TIMED_OUT = "CollectiveTimeout"
"""The `type` of the error."""
LOOK_EVERY_S = 1.0
ABORTED = 3
"""Exit code of a rank that ends as others have failed."""


@dataclass(frozen=True)
class Operation:
    name: str
    step: int
    began_s: float


class Watchdog:
    """`during` is called around whatever may wait for other ranks, by the main thread."""

    def __init__(
        self,
        rank: int,
        attempt: AttemptFolder,
        timeout_s: float,
        *,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self.step = 0
        """The step in hand, from 1; 0 before training."""
        self._rank, self._attempt, self._timeout_s = rank, attempt, timeout_s
        self._end = end
        self._parent = os.getppid()
        self._operation: Operation | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()

    @contextmanager
    def during(self, operation: str) -> Iterator[None]:
        """Announce that what follows may wait for other ranks."""
        outer = self._operation
        self._operation = Operation(operation, self.step, time.monotonic())
        try:
            yield
        finally:
            self._operation = outer

    def _watch(self) -> None:
        while not self._closed.wait(min(LOOK_EVERY_S, self._timeout_s / 4)):
            operation = self._operation
            if operation is not None:
                self._judge(operation, time.monotonic() - operation.began_s)
            if self._attempt.is_aborted() or os.getppid() != self._parent:
                self._end(ABORTED)

    def _judge(self, operation: Operation, seconds: float) -> None:
        if seconds < self._timeout_s:
            return
        where = f"step {operation.step}" if operation.step else "the start"
        message = (
            f"rank {self._rank} has waited {seconds:.1f} s in {operation.name} at {where}: another "
            f"rank is stuck or gone (launcher.collective_timeout_s={self._timeout_s:g})"
        )
        self._attempt.write_failure(self._rank, RunError(TIMED_OUT, message, None, self._rank))
        self._end(1)
