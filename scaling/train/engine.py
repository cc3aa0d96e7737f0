"""What the training loop asks of an engine. The loop sees no gradient and no optimizer.

Engines: `scaling.train.torch_engine` (autograd and torch.optim on one process).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from scaling.kernels import Active


class StepStats(NamedTuple):
    """One optimizer step, measured before its update. Scalars (0-d tensors: reading one waits)."""

    loss: Tensor
    normalized_mse: Tensor
    """Against the calibration mean predictor; the held-out metric is evaluate.py's."""
    aux_loss: Tensor
    dead_fraction: float
    """Share of latents dead at the start of the step."""
    grad_norm: Tensor | None
    """Global norm before clipping; None where it was not asked for."""


class Reconstructor(Protocol):
    """Anything that can be scored."""

    def reconstruct(self, x_BD: Tensor) -> tuple[Active, Tensor]:
        """Code and reconstruction of x, wherever x is."""
        ...


class Engine(Protocol):
    """Owns forward, backward, update, renormalization and the weight average of one run."""

    def step(self, batch_BD: Tensor, lr: float, *, measure_norm: bool = False) -> StepStats:
        """Train on one global batch, [B, D]."""
        ...

    def scorer(self, *, averaged: bool = False) -> Reconstructor:
        """The model under the raw weights, or their bias-corrected average as it is now."""
        ...

    def tokens_since_fired(self) -> Tensor:
        """Tokens each latent has been silent for, [n_latents] int64."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything a resume needs, by name; per-latent tensors are full rows [n_latents, ...]."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a `state()`; KeyError or ValueError where names or shapes do not fit."""
        ...

    def weights(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """w_enc, w_dec [n_latents, d_model], b_enc [n_latents], b_pre [d_model]."""
        ...
