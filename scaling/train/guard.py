"""Losses that must not reach the weights: not finite, or a spike above the recent ones.

The engine asks before each update, with the loss of the global batch: all ranks hear the same. What
the guard remembers is part of a checkpoint, so that a resume judges as the run would have.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

import torch
from torch import Tensor

from scaling.plan import TrainPlan

REMEMBERED = 100
"""Accepted losses of which the median is taken."""
JUDGED_FROM = 10
"""Losses to know before one is called a spike."""
MAX_SKIPPED_IN_A_ROW = 100
"""Then the run has diverged: weights that give no good loss any more get no better by waiting."""


class LossGuard:
    """Decides on each step; `ended_by` says why the run must end, once it must."""

    def __init__(self, *, skips: bool, spike_factor: float | None) -> None:
        self.skips = skips
        self.ended_by: str | None = None
        self.n_skipped = 0
        self._spike_factor = spike_factor
        self._accepted: deque[float] = deque(maxlen=REMEMBERED)
        self._skipped_in_a_row = 0

    @classmethod
    def of(cls, train: TrainPlan) -> LossGuard | None:
        """None where losses are looked at when they are logged, and need no more."""
        skips = train.on_bad_loss == "skip"
        if not skips and train.spike_factor is None:
            return None
        return cls(skips=skips, spike_factor=train.spike_factor)

    def accepts(self, step: int, loss: float) -> bool:
        """Whether step number `step` (from 1) may change the weights."""
        problem = self._problem(step, loss)
        if problem is None:
            self._accepted.append(loss)
            self._skipped_in_a_row = 0
            return True
        self.n_skipped += self.skips
        self._skipped_in_a_row += 1
        if not self.skips:
            self.ended_by = problem
        elif self._skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            self.ended_by = f"{problem}, the last of {MAX_SKIPPED_IN_A_ROW} bad steps in a row"
        return False

    @property
    def warnings(self) -> list[str]:
        """For the record."""
        skipped = [f"skipped_steps: {self.n_skipped} (bad losses)"] if self.n_skipped else []
        return skipped + ([self.ended_by] if self.ended_by else [])

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {
            _LOSSES: torch.tensor(list(self._accepted), dtype=torch.float64),
            _COUNTS: torch.tensor([self.n_skipped, self._skipped_in_a_row]),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a `state()`; KeyError where it has none."""
        self._accepted = deque(state[_LOSSES].tolist(), maxlen=REMEMBERED)
        self.n_skipped, self._skipped_in_a_row = state[_COUNTS].tolist()

    def _problem(self, step: int, loss: float) -> str | None:
        if not math.isfinite(loss):
            return f"loss at step {step} is not finite"
        if self._spike_factor is None or len(self._accepted) < JUDGED_FROM:
            return None
        usual = median(self._accepted)
        if loss <= self._spike_factor * usual:
            return None
        return f"loss spike at step {step}: {loss:.6g}, median {usual:.6g}"


_LOSSES, _COUNTS = "guard.losses", "guard.counts"
