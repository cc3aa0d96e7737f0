"""TopK with a second, wider reconstruction (Gao et al. 2024, appendix on Multi-TopK).

    L = L(k) + w L(K),   K = 4k and w = 1/8 by default

where L(j) is the loss of the j largest latents of each token. One pass of the encoder finds the K
largest, whose first k are the code: l0, dead latents and AuxK are those of k.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scaling.autoencoder.losses import reconstruction_loss
from scaling.autoencoder.topk import Fit, TopKAutoencoder, TopKSpec
from scaling.kernels import Active


@dataclass(frozen=True, kw_only=True)
class MultiTopKSpec(TopKSpec):
    """See the module's equation."""

    wide_k: int
    """K, the latents of the wider reconstruction."""
    wide_weight: float
    """w, the weight of its loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k <= self.wide_k <= self.n_latents:
            raise ValueError(f"wide_k={self.wide_k} must lie in k..n_latents={self.n_latents}")


class MultiTopKAutoencoder(TopKAutoencoder):
    """See the module's equation."""

    spec: MultiTopKSpec  # type: ignore[assignment]  # never replaced

    def _fit(self, x_BD: Tensor, b_pre_D: Tensor) -> Fit:
        n_local, spec = len(self.w_enc), self.spec
        wide_k, k = min(spec.wide_k, n_local), min(spec.k, n_local)
        found = self.kernels.encode_topk(x_BD, self.w_enc, self.b_enc, wide_k, b_pre_D=b_pre_D)
        ids_BK = found.indices_BK + self.shard.first_latent
        wide = self._selected(found, ids_BK, spec.wide_k, wide_k)
        first = Active(found.values_BK[:, :k].contiguous(), found.indices_BK[:, :k].contiguous())
        active = self._selected(first, ids_BK[:, :k], spec.k, k)
        residual_BD = x_BD - self.decode(active)
        mse = reconstruction_loss(residual_BD, spec.mean_predictor_mse)
        wide_mse = reconstruction_loss(x_BD - self.decode(wide), spec.mean_predictor_mse)
        return Fit(active, residual_BD, mse, mse + spec.wide_weight * wide_mse)
