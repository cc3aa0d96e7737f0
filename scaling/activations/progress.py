"""Telling how far a preparation has come, about once a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

INTERVAL_S = 1.0


@dataclass(frozen=True)
class Progress:
    phase: str
    """"wait" (another process is harvesting the same), "convert", "tokenize", "harvest",
    "shuffle" or "verify", in this order; phases with nothing to do are left out."""
    done: int
    total: int
    """0 = not known beforehand."""
    unit: str
    """What is counted: "s", "tensors", "characters", "tokens" or "bytes"."""


ProgressCallback = Callable[[Progress], None]


class Meter:
    """Passes reports on: the first of each phase, then one a second, and the last."""

    def __init__(self, report: ProgressCallback) -> None:
        self._report = report
        self._phase = ""
        self._told_at = 0.0

    def tell(self, phase: str, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if phase != self._phase or done == total or now - self._told_at >= INTERVAL_S:
            self._phase, self._told_at = phase, now
            self._report(Progress(phase, done, total, unit))
