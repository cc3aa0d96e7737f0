"""What each package's module offers to the worker, and what several of them need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Weights = dict[str, Tensor]
"""See `benchmarks.peers.data.initial_weights`."""


class Score(NamedTuple):
    """What a contender makes of a batch, before or after a step; nothing is trained."""

    squared_error: float
    """|x - xhat|^2, mean over tokens."""
    aux_loss: float
    """As the package defines it; 0 where no latent is dead."""
    n_dead: int
    """Latents that the package's own counters call dead."""


class Contender(Protocol):
    """A model with its optimizer, ready to train."""

    def step(self, batch_BD: Tensor) -> None:
        """One training step, all of it."""
        ...

    def score(self, batch_BD: Tensor) -> Score | None:
        """None for a contender that only multiplies."""
        ...


def turn_clipping_off() -> None:
    """Make torch.nn.utils.clip_grad_norm_ do nothing in this process.

    Two packages call it with a norm of 1 and no way to say no. Clipping costs one pass over the
    gradients that the others do not do.
    """

    def unclipped(*_args: Any, **_kwargs: Any) -> Tensor:
        return torch.zeros(())

    torch.nn.utils.clip_grad_norm_ = unclipped


def silent_tokens(n_latents: int, dead: Tensor, *, value: float, like: Tensor) -> Tensor:
    """Counters in the type of `like`: `value` for the latents held dead, 0 for all others."""
    counters_N = torch.zeros(n_latents, dtype=like.dtype)
    counters_N[dead] = value
    return counters_N


Builder = Callable[..., Contender]
"""build(shape, weights, batches) -> a contender; the weights are copied, not kept."""
