"""Exponential moving average of the weights, bias-corrected like Adam's moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class WeightAverage:
    """average_t = decay * average_{t-1} + (1 - decay) * weights_t, divided by 1 - decay^t on use.

    With decay 0 nothing is kept and nothing is computed.
    """

    def __init__(self, params: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        self.params = params
        self.averages = {
            name: torch.zeros_like(param, requires_grad=False)
            for name, param in params.items()
            if decay
        }

    @torch.no_grad()
    def update(self, names: Iterable[str] | None = None) -> None:
        """Take in the present weights; `names` = only these (the caller did the others)."""
        if not self.decay:
            return
        for name in self.averages if names is None else names:
            self.averages[name].lerp_(self.params[name].detach(), 1 - self.decay)
        self.n_updates += 1

    @torch.no_grad()
    def restart_(self, names: Iterable[str], rows: Tensor) -> None:
        """Have these rows' average be the present weights, as if they had always been these."""
        for name in set(names) & set(self.averages):
            weight = 1 - self.decay**self.n_updates
            self.averages[name][rows] = weight * self.params[name].detach()[rows]

    def corrected(self) -> dict[str, Tensor]:
        """The average as if it had not started from zero; the weights, before the first update.

        Raises:
            ValueError: no average is kept.
        """
        if not self.decay:
            raise ValueError("no weight average: ema_decay is 0")
        if not self.n_updates:
            return {name: self.params[name].detach().clone() for name in self.averages}
        return {
            name: average / (1 - self.decay**self.n_updates)
            for name, average in self.averages.items()
        }

    def state(self) -> dict[str, Tensor]:
        averages = {name: average.clone() for name, average in self.targets().items()}
        return averages | {"ema_updates": torch.tensor(self.n_updates)}

    def targets(self) -> dict[str, Tensor]:
        """What a saved state is copied into, by its names there."""
        return {f"{name}.ema": average for name, average in self.averages.items()}
