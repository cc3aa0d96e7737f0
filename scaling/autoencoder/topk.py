"""The TopK autoencoder (Gao et al. 2024, section 2.3) with a pre-bias and a latent bias.

    z    = relu(TopK_k(W_enc (x - b_pre) + b_enc))
    xhat = W_dec z + b_pre

The paper's equation has neither b_enc nor the relu; its released code has both, as here.

Shape suffixes: B tokens, D d_model, N latents held here, K active, A auxiliary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from scaling.autoencoder.base import Autoencoder, Losses, Spec
from scaling.autoencoder.code import Code
from scaling.autoencoder.ghost import Ghost, ghost_loss, rows_of
from scaling.autoencoder.losses import auxiliary_loss, reconstruction_loss
from scaling.autoencoder.shard import LatentShard
from scaling.kernels import Active, Kernels


@dataclass(frozen=True, kw_only=True)
class TopKSpec(Spec):
    """A model that keeps k latents per token, and its auxiliary loss."""

    k: int
    k_aux: int
    aux_coef: float
    """Weight of the AuxK loss; 0 = off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.n_latents:
            raise ValueError(f"k={self.k} must lie in 1..n_latents={self.n_latents}")
        if self.aux_coef and self.k_aux < 1:
            raise ValueError(f"k_aux={self.k_aux} must be at least 1 when aux_coef is not 0")
        if self.aux_coef and self.ghost_grads:
            raise ValueError(f"ghost_grads with aux_coef={self.aux_coef}: one treatment at a time")


class Fit(NamedTuple):
    """How a batch is reconstructed, without what is done for dead latents."""

    code: Code
    residual_BD: Tensor
    """x - xhat."""
    mse: Tensor
    """Of that residual, normalized."""
    loss: Tensor
    """What is minimized: `mse`, with the losses of further reconstructions."""


class TopKAutoencoder(Autoencoder):
    """See the module's equations. A subclass selects otherwise, or has further reconstructions."""

    spec: TopKSpec

    def __init__(
        self,
        spec: TopKSpec,
        kernels: Kernels,
        weights: dict[str, Tensor],
        shard: LatentShard | None = None,
    ) -> None:
        super().__init__(spec, weights, shard)
        self.kernels = kernels

    def with_weights(self, weights: dict[str, Tensor]) -> Self:
        return type(self)(self.spec, self.kernels, weights, self.shard)

    def encode(self, x_BD: Tensor) -> Code:
        """The k active latents of each token, values after the ReLU, ids local to this shard."""
        return self._encode(x_BD, self.shard.replicated(self.b_pre))

    def decode(self, code: Code) -> Tensor:
        if not isinstance(code, Active):
            return super().decode(code)
        return self.shard.sum_over_shards(self.kernels.decode(code, self.w_dec)) + self.b_pre

    def encode_with_losses(self, x_BD: Tensor, dead: Tensor, step: int = 0) -> tuple[Code, Losses]:
        # Once for all encodings: its gradient is a collective, which every shard makes once.
        b_pre_D = self.shard.replicated(self.b_pre)
        code, residual_BD, mse, loss = self._fit(x_BD, b_pre_D)
        n_dead = self.shard.gather_counts(len(dead))
        if not sum(n_dead) or not (self.spec.aux_coef or self.spec.ghost_grads):
            zero = torch.zeros_like(mse).detach()
            return code, Losses(loss, mse.detach(), zero, sum(n_dead))
        # Detached: dead latents learn to model the residual, not the residual to please them.
        target_BD = residual_BD.detach()
        if self.spec.ghost_grads:
            ghost = self._ghost(x_BD, b_pre_D, target_BD, dead)
            return code, Losses(loss + ghost.scaled, mse.detach(), ghost.loss, sum(n_dead))
        recon_BD = self._aux_reconstruction(x_BD, b_pre_D, dead, max(n_dead))
        aux = auxiliary_loss(target_BD, recon_BD, self.shard.mean_over_replicas)
        total = loss + self.spec.aux_coef * aux
        return code, Losses(total, mse.detach(), aux.detach(), sum(n_dead))

    def _fit(self, x_BD: Tensor, b_pre_D: Tensor) -> Fit:
        active = self._encode(x_BD, b_pre_D)
        residual_BD = x_BD - self.decode(active)
        mse = reconstruction_loss(residual_BD, self.spec.mean_predictor_mse)
        return Fit(active, residual_BD, mse, mse)

    def _ghost(self, x_BD: Tensor, b_pre_D: Tensor, target_BD: Tensor, dead: Tensor) -> Ghost:
        w_enc_AD, w_dec_AD = rows_of(self.w_enc, dead), rows_of(self.w_dec, dead)
        pre_BA = linear(x_BD - b_pre_D, w_enc_AD, self.b_enc[dead])
        return ghost_loss(target_BD, pre_BA, w_dec_AD, self.spec.mean_predictor_mse, self.shard)

    def _encode(self, x_BD: Tensor, b_pre_D: Tensor) -> Active:
        k = min(self.spec.k, len(self.w_enc))
        candidates = self.kernels.encode_topk(x_BD, self.w_enc, self.b_enc, k, b_pre_D=b_pre_D)
        ids_BK = candidates.indices_BK + self.shard.first_latent
        return self._selected(candidates, ids_BK, self.spec.k, k)

    def _aux_reconstruction(
        self, x_BD: Tensor, b_pre_D: Tensor, dead: Tensor, most_dead: int
    ) -> Tensor:
        """W_dec z_aux over the k_aux largest dead latents; no b_pre, since it models a residual.

        `most_dead` is the largest number of dead latents that a shard holds.
        """
        k_aux = min(self.spec.k_aux, len(dead))
        if k_aux:
            w_enc_AD, b_enc_A = rows_of(self.w_enc, dead), self.b_enc[dead]
            candidates = self.kernels.encode_topk(x_BD, w_enc_AD, b_enc_A, k_aux, b_pre_D=b_pre_D)
        else:
            candidates = _no_candidates(x_BD)
        ids_BK = dead[candidates.indices_BK] + self.shard.first_latent
        widest = min(self.spec.k_aux, most_dead)
        active = self._selected(candidates, ids_BK, self.spec.k_aux, widest)
        if not k_aux:
            return self.shard.sum_over_shards(torch.zeros_like(x_BD))
        return self.shard.sum_over_shards(self.kernels.decode(active, rows_of(self.w_dec, dead)))

    def _selected(self, candidates: Active, ids_BK: Tensor, k: int, widest: int) -> Active:
        """The candidates (global ids `ids_BK`) that are selected, rectified."""
        kept_BK = self.shard.select(Active(candidates.values_BK, ids_BK), k, widest).values_BK
        return Active(torch.relu(kept_BK), candidates.indices_BK[:, : kept_BK.shape[1]])


def is_plain_topk(model: Autoencoder) -> bool:
    """Whether it is the model that the fused kernels step: unit rows, projected, with a bias."""
    spec = model.spec
    as_published = spec.b_enc and spec.decoder_norm and spec.gradient_projection
    return type(model) is TopKAutoencoder and as_published and not spec.ghost_grads


def _no_candidates(x_BD: Tensor) -> Active:
    empty_BK = x_BD.new_zeros(len(x_BD), 0)
    return Active(empty_BK, empty_BK.long())
