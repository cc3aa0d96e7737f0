"""When a run to convergence is through: the last doubling of tokens bought less than a share.

The held-out loss of the averaged weights is taken at steps spaced evenly in ln tokens, each with
one at exactly half its tokens. A run ends at the first at which the fall since that half is below
`fall`. Under a constant rate the averaged weights are the ones to judge by: the raw ones carry the
rate's noise, which no tokens take away.

What was seen is part of a checkpoint, so that a resumed run judges as the undisturbed one would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from scaling.plan import TrainPlan

LOSS = "eval/normalized_mse_ema"
"""The figure of a row of metrics that is judged."""
Agree = Callable[[bool], bool]


def _alone(met: bool) -> bool:
    return met


class StopRule:
    """Judges a run at its evaluations. `agree` makes the ranks of a run end at the same step."""

    def __init__(
        self, *, fall: float, first_step: int, per_doubling: int, steps: int, agree: Agree = _alone
    ) -> None:
        self.met = False
        self.last_fall: float | None = None
        """Share by which the last doubling that was seen lowered the loss."""
        self._fall, self._agree = fall, agree
        self._steps = frozenset(evaluated_steps(first_step, per_doubling, steps))
        self._losses: dict[int, float] = {}

    @classmethod
    def of(cls, train: TrainPlan, agree: Agree = _alone) -> StopRule | None:
        """None where a run trains all its tokens."""
        if train.stop_fall is None:
            return None
        assert train.stop_after_tokens is not None
        assert train.stop_per_doubling is not None
        return cls(
            fall=train.stop_fall,
            first_step=first_step(train.stop_after_tokens, train.batch_tokens),
            per_doubling=train.stop_per_doubling,
            steps=train.steps,
            agree=agree,
        )

    def evaluates(self, step: int) -> bool:
        """Whether the loss after `step` steps is needed."""
        return step in self._steps

    def ends(self, step: int, scores: Mapping[str, float | int | None]) -> bool:
        """Whether the run is through; to be asked after each evaluation. Collective."""
        if not self.evaluates(step):
            return False
        loss = scores[LOSS]
        assert loss is not None  # ema_decay = 0 is refused with this rule
        self._losses[step] = float(loss)
        self.last_fall = self._fall_to(step)
        self.met = self._agree(self.last_fall is not None and self.last_fall < self._fall)
        return self.met

    def _fall_to(self, step: int) -> float | None:
        """Share by which the doubling up to `step` lowered the loss; None where there was none.

        Half a step is no trap: what is evaluated from twice the first step on is even.
        """
        before = self._losses.get(step // 2)
        return None if before is None else 1.0 - self._losses[step] / before

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {
            _STEPS: torch.tensor(list(self._losses), dtype=torch.int64),
            _LOSSES: torch.tensor(list(self._losses.values()), dtype=torch.float64),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a `state()`; KeyError where it has none."""
        self._losses = dict(zip(state[_STEPS].tolist(), state[_LOSSES].tolist(), strict=True))
        if self._losses:
            self.last_fall = self._fall_to(max(self._losses))


def first_step(after_tokens: int, batch_tokens: int) -> int:
    """The first evaluation: whole batches of `after_tokens` at least."""
    return max(1, -(-after_tokens // batch_tokens))


def evaluated_steps(first: int, per_doubling: int, steps: int) -> list[int]:
    """Steps up to `steps`, `per_doubling` in each doubling from `first` on; all that have a double
    within have it among them, exactly."""
    octave = sorted({round(first * 2 ** (i / per_doubling)) for i in range(per_doubling)})
    octave = [step for step in octave if step < 2 * first]
    found: list[int] = []
    while octave and octave[0] <= steps:
        found += [step for step in octave if step <= steps]
        octave = [2 * step for step in octave]
    return found


_STEPS, _LOSSES = "stop.steps", "stop.losses"
