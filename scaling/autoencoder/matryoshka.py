"""Nested dictionaries (Bussmann et al. 2025, arXiv 2503.17547), here with TopK.

    L = sum over m in M of |x - (z_{<m} W_dec_{<m} + b_pre)|^2

M are prefixes of the latents, the last of them all; z is selected once, over all latents. The first
latents must so reconstruct alone what they can. The paper selects over a batch (BatchTopK), here
each token keeps k. AuxK models what the whole code leaves.

Shape suffixes: G prefixes, B tokens, D d_model, K active.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from scaling.autoencoder.losses import reconstruction_loss
from scaling.autoencoder.topk import Fit, TopKAutoencoder, TopKSpec
from scaling.kernels import Active


@dataclass(frozen=True, kw_only=True)
class MatryoshkaSpec(TopKSpec):
    """See the module's equation."""

    prefixes: tuple[int, ...]
    """Latents of each nested dictionary, ascending; the last is n_latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = (0, *self.prefixes)
        if list(ascending) != sorted(set(ascending)) or ascending[-1] != self.n_latents:
            raise ValueError(
                f"prefixes={self.prefixes} must ascend from 1 or more to n_latents={self.n_latents}"
            )


class MatryoshkaAutoencoder(TopKAutoencoder):
    """See the module's equation."""

    spec: MatryoshkaSpec  # type: ignore[assignment]  # never replaced

    def _fit(self, x_BD: Tensor, b_pre_D: Tensor) -> Fit:
        active = self._encode(x_BD, b_pre_D)
        recon_GBD = self.shard.sum_over_shards(self._by_prefix(active)) + self.b_pre
        residuals_GBD = x_BD - recon_GBD
        mses = [reconstruction_loss(r, self.spec.mean_predictor_mse) for r in residuals_GBD]
        return Fit(active, residuals_GBD[-1], mses[-1], torch.stack(mses).sum())

    def _by_prefix(self, active: Active) -> Tensor:
        """What the latents held here give to each prefix's reconstruction, [G, B, D]."""
        bounds = (0, *self.spec.prefixes)
        ids_BK = active.indices_BK + self.shard.first_latent
        parts = []
        for first, stop in pairwise(bounds):
            inside_BK = (ids_BK >= first) & (ids_BK < stop)
            values_BK = torch.where(inside_BK, active.values_BK, 0.0)
            parts.append(self.kernels.decode(Active(values_BK, active.indices_BK), self.w_dec))
        return torch.stack(parts).cumsum(dim=0)
