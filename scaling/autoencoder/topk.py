"""The TopK autoencoder (Gao et al. 2024, section 2.3) with a pre-bias and a latent bias.

    z    = relu(TopK_k(W_enc (x - b_pre) + b_enc))
    xhat = W_dec z + b_pre

The paper's equation has neither b_enc nor the relu; its released code has both, as here.
Both weights are stored [n_latents, d_model], so that a latent is a row in each, reads coalesce,
and a shard of latents is a range of rows.

Shape suffixes: B tokens, D d_model, N latents held here, K active, A auxiliary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaling.autoencoder.losses import auxiliary_loss, reconstruction_loss
from scaling.autoencoder.shard import LatentShard, Unsharded
from scaling.kernels import Active, Kernels


@dataclass(frozen=True, kw_only=True)
class TopKSpec:
    """Everything that defines the model and its loss, with all numbers settled."""

    d_model: int
    n_latents: int
    k: int
    k_aux: int
    aux_coef: float
    """Weight of the AuxK loss; 0 = off."""
    mean_predictor_mse: float
    """Mean over tokens and d of the squared distance to the calibration mean: the loss's unit."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n_latents:
            raise ValueError(f"k={self.k} must lie in 1..n_latents={self.n_latents}")
        if self.aux_coef and self.k_aux < 1:
            raise ValueError(f"k_aux={self.k_aux} must be at least 1 when aux_coef is not 0")
        if not self.mean_predictor_mse > 0:
            raise ValueError(f"mean_predictor_mse={self.mean_predictor_mse} must be positive")


class Losses(NamedTuple):
    """Scalars; `total` is what the gradient is taken of."""

    total: Tensor
    normalized_mse: Tensor
    """Reconstruction loss over the calibration mean predictor's; not the held-out metric."""
    aux: Tensor
    """AuxK loss before its weight; 0 when no latent is dead."""


class TopKAutoencoder(nn.Module):
    """Weights and equations; no optimizer, no data, no knowledge of ranks."""

    def __init__(
        self,
        spec: TopKSpec,
        kernels: Kernels,
        weights: dict[str, Tensor],
        shard: LatentShard | None = None,
    ) -> None:
        """`weights`: w_enc [N, D], w_dec [N, D], b_enc [N], b_pre [D], of one float dtype."""
        super().__init__()
        self.spec = spec
        self.kernels = kernels
        self.shard = shard or Unsharded()
        self.w_enc = nn.Parameter(weights["w_enc"])
        self.w_dec = nn.Parameter(weights["w_dec"])
        self.b_enc = nn.Parameter(weights["b_enc"])
        self.b_pre = nn.Parameter(weights["b_pre"])

    def encode(self, x_BD: Tensor) -> Active:
        """The k active latents of each token, values after the ReLU, ids local to this shard."""
        candidates = self.kernels.encode_topk(
            x_BD, self.w_enc, self.b_enc, min(self.spec.k, len(self.w_enc)), b_pre_D=self.b_pre
        )
        ids_BK = candidates.indices_BK + self.shard.first_latent
        return self._selected(candidates, ids_BK, self.spec.k)

    def decode(self, active: Active) -> Tensor:
        """The reconstruction xhat, [B, D]."""
        return self.shard.sum_over_shards(self.kernels.decode(active, self.w_dec)) + self.b_pre

    def losses(self, x_BD: Tensor, active: Active, dead: Tensor) -> Losses:
        """Loss of a batch, given its code and the (local) ids of the dead latents ([A], int64)."""
        residual_BD = x_BD - self.decode(active)
        mse = reconstruction_loss(residual_BD, self.spec.mean_predictor_mse)
        if not self.spec.aux_coef or not self.shard.sum_counts(len(dead)):
            return Losses(mse, mse.detach(), torch.zeros_like(mse).detach())
        # Detached: dead latents learn to model the residual, not the residual to please them.
        target_BD = residual_BD.detach()
        aux = auxiliary_loss(target_BD, self._aux_reconstruction(x_BD, dead))
        return Losses(mse + self.spec.aux_coef * aux, mse.detach(), aux.detach())

    def _aux_reconstruction(self, x_BD: Tensor, dead: Tensor) -> Tensor:
        """W_dec z_aux over the k_aux largest dead latents; no b_pre, since it models a residual."""
        k_aux = min(self.spec.k_aux, len(dead))
        candidates = self.kernels.encode_topk(
            x_BD, _rows(self.w_enc, dead), self.b_enc[dead], k_aux, b_pre_D=self.b_pre
        )
        ids_BK = dead[candidates.indices_BK] + self.shard.first_latent
        active = self._selected(candidates, ids_BK, self.spec.k_aux)
        return self.shard.sum_over_shards(self.kernels.decode(active, _rows(self.w_dec, dead)))

    def _selected(self, candidates: Active, ids_BK: Tensor, k: int) -> Active:
        """The candidates (global ids `ids_BK`), rectified, with 0 for those not kept."""
        kept = self.shard.select(Active(candidates.values_BK, ids_BK), k)
        return Active(torch.relu(kept.values_BK), candidates.indices_BK)


def _rows(weight_ND: Tensor, ids: Tensor) -> Tensor:
    """weight[ids], whose gradient touches those rows alone instead of filling an [N, D] tensor."""
    return torch.nn.functional.embedding(ids, weight_ND, sparse=True)
