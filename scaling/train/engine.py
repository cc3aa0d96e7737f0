"""What the training loop asks of an engine. The loop sees no gradient and no optimizer.

Engines: `scaling.train.torch_engine` (autograd and torch.optim; on many processes the oracle),
`scaling.train.fused_engine` (one replica, no gradient matrices) and
`scaling.distributed.deepspeed_engine` (many replicas). All may hold a shard of the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from scaling.autoencoder.code import Code


class StepStats(NamedTuple):
    """One optimizer step, measured before its update. Scalars (0-d tensors: reading one waits).

    Losses are of the global batch where the step was measured, else of this replica's part.
    """

    loss: Tensor
    normalized_mse: Tensor
    """Against the calibration mean predictor; the held-out metric is evaluate.py's."""
    aux_loss: Tensor
    dead_fraction: float
    """Share of latents dead at the start of the step."""
    grad_norm: Tensor | None
    """Global norm before clipping; None where it was not asked for."""
    skipped: bool = False
    """The loss was refused: nothing was updated."""
    sparsity: Tensor | None = None
    """The sparsity penalty before its weight, where there is one."""


Accept = Callable[[float], bool]
"""Whether a step with this loss (of the global batch) may change the weights."""


class Reconstructor(Protocol):
    """Anything that can be scored."""

    def reconstruct(self, x_BD: Tensor) -> tuple[Code, Tensor]:
        """Code and reconstruction of x, wherever x is."""
        ...


class Engine(Protocol):
    """Owns forward, backward, update, renormalization and the weight average of one run.

    On a mesh every method is collective: all ranks call it, in the same order.
    """

    def step(
        self, batch_BD: Tensor, lr: float, *, measure: bool = False, accept: Accept | None = None
    ) -> StepStats:
        """Train on this replica's part of a global batch, [B, D].

        `measure` the global norm and losses; with `accept`, skip the update where it says so.
        """
        ...

    def report(self) -> dict[str, float]:
        """Figures for the log about the exchanges since the last call."""
        ...

    def check_replicas(self) -> None:
        """RuntimeError where ranks that hold the same weights hold others."""
        ...

    def scorer(self, *, averaged: bool = False) -> Reconstructor:
        """The model under the raw weights, or their bias-corrected average as it is now."""
        ...

    def tokens_since_fired(self) -> Tensor:
        """Tokens each latent held here has been silent for, [N] int64."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything a resume needs, by name; of per-latent tensors the rows held here."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a `state()`; KeyError or ValueError where names or shapes do not fit."""
        ...

    def weights(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """w_enc, w_dec [N, d_model], b_enc [N] of the latents held here, b_pre [d_model], and what
        else the architecture has."""
        ...
