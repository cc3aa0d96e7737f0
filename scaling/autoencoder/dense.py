"""What architectures share that have a value for every latent: sparsity is their outcome.

    z    = f(W_enc (x - b_pre) + b_enc)      f by latent: a latent asks nobody else
    xhat = W_dec z + b_pre

Shape suffixes: B tokens, D d_model, N latents held here.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from scaling.autoencoder.base import Autoencoder, Losses, Spec
from scaling.autoencoder.code import Dense
from scaling.autoencoder.ghost import Ghost, ghost_loss, rows_of
from scaling.autoencoder.losses import reconstruction_loss


@dataclass(frozen=True, kw_only=True)
class PenalizedSpec(Spec):
    """A model that pays for activity instead of having a fixed number of active latents."""

    penalty: float
    """Lambda, the weight of the sparsity penalty in |x - xhat|^2 + lambda * S."""
    warmup_steps: int = 0
    """Updates over which the weight rises linearly to `penalty`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalty >= 0:
            raise ValueError(f"penalty={self.penalty} must be at least 0")

    def penalty_at(self, step: int) -> float:
        """The weight after `step` updates."""
        return self.penalty * min(1.0, (step + 1) / max(1, self.warmup_steps))

    @property
    def unit(self) -> float:
        """What |x - xhat|^2 of a token is divided by in the loss, and its penalty with it."""
        return self.d_model * self.mean_predictor_mse


S = TypeVar("S", bound=PenalizedSpec)


class DenseAutoencoder(Autoencoder, Generic[S]):
    """One activation per latent; a subclass says which, and what it pays."""

    spec: S

    @abstractmethod
    def activations(self, pre_BN: Tensor) -> Tensor:
        """z from W_enc (x - b_pre), [B, N]; the bias is the activation function's business."""

    @abstractmethod
    def sparsity(self, pre_BN: Tensor, z_BN: Tensor) -> Tensor:
        """The penalty S before its weight: mean over tokens, of the latents held here, 0-d."""

    def encode(self, x_BD: Tensor) -> Dense:
        return Dense(self.activations(self.projected(x_BD)))

    def projected(self, x_BD: Tensor) -> Tensor:
        """W_enc (x - b_pre), [B, N]. Once a step: b_pre's gradient is summed over shards."""
        return linear(x_BD - self.shard.replicated(self.b_pre), self.w_enc)

    def encode_with_losses(self, x_BD: Tensor, dead: Tensor, step: int = 0) -> tuple[Dense, Losses]:
        pre_BN = self.projected(x_BD)
        code = Dense(self.activations(pre_BN))
        residual_BD = x_BD - self.decode(code)
        mse = reconstruction_loss(residual_BD, self.spec.mean_predictor_mse)
        partial, more = self.priced(x_BD, pre_BN, code.values_BN)
        sparsity = self.shard.sum_over_shards(partial)
        weight = self.spec.penalty_at(step) / self.spec.unit
        total = mse + more + weight * self.penalized(sparsity)
        n_dead = sum(self.shard.gather_counts(len(dead)))
        aux = torch.zeros_like(mse).detach()
        if self.spec.ghost_grads and n_dead:
            ghost = self._ghost(residual_BD.detach(), pre_BN, dead)
            total, aux = total + ghost.scaled, ghost.loss
        return code, Losses(total, mse.detach(), aux, n_dead, sparsity.detach())

    def _ghost(self, target_BD: Tensor, pre_BN: Tensor, dead: Tensor) -> Ghost:
        pre_BA, w_dec_AD = pre_BN[:, dead] + self.b_enc[dead], rows_of(self.w_dec, dead)
        return ghost_loss(target_BD, pre_BA, w_dec_AD, self.spec.mean_predictor_mse, self.shard)

    def penalized(self, sparsity: Tensor) -> Tensor:
        """What lambda weighs, of the sparsity of all shards; itself by default."""
        return sparsity

    def priced(self, x_BD: Tensor, pre_BN: Tensor, z_BN: Tensor) -> tuple[Tensor, Tensor | float]:
        """The sparsity of the latents here, and a further term of the loss; none by default."""
        return self.sparsity(pre_BN, z_BN), 0.0


def weighted_l1(z_BN: Tensor, w_dec_ND: Tensor) -> Tensor:
    """Sum over latents of value times decoder norm, mean over tokens, 0-d."""
    return (z_BN @ torch.linalg.vector_norm(w_dec_ND, dim=1)).mean()
