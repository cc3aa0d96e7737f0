"""TopK over a batch instead of a token (Bussmann et al. 2024, arXiv 2412.06410).

    training     z = the B k largest of relu(W_enc (x - b_pre) + b_enc), over all B tokens
    inference    z = those above a threshold theta, so that a token asks no other

theta estimates the mean over batches of the smallest value that was kept: here a running mean over
training steps, which forgets by `threshold_decay` since the weights move. So L0 at inference is an
outcome near k.

Shape suffixes: B tokens, D d_model, N latents held here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from scaling.autoencoder.batch_selection import select_of_batch
from scaling.autoencoder.code import Code, Dense
from scaling.autoencoder.losses import reconstruction_loss
from scaling.autoencoder.topk import Fit, TopKAutoencoder, TopKSpec


@dataclass(frozen=True, kw_only=True)
class BatchTopKSpec(TopKSpec):
    """k is the mean number of active latents per token in training."""

    threshold_decay: float
    """Share of the running mean that a step keeps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold_decay < 1:
            raise ValueError(f"threshold_decay={self.threshold_decay} must lie in 0 up to below 1")


class BatchTopKAutoencoder(TopKAutoencoder):
    """See the module's equations."""

    spec: BatchTopKSpec  # type: ignore[assignment]  # never replaced
    threshold: Tensor
    """0 until the first step."""
    STATISTICS: ClassVar[dict[str, float]] = {"threshold": 0.0}

    def encode(self, x_BD: Tensor) -> Code:
        z_BN = self._activations(x_BD, self.shard.replicated(self.b_pre))
        return Dense(torch.where(z_BN <= self.threshold, 0, z_BN))  # of <=: NaN stays to be seen

    def encode_at_start(self, x_BD: Tensor) -> Code:
        """The k largest of each token: as many as of a batch, while there is no threshold."""
        return super().encode(x_BD)

    @torch.no_grad()
    def after_step(self, code: Code) -> None:
        """Take the smallest value kept in the batch into the threshold."""
        assert isinstance(code, Dense)
        kept_BN = torch.where(code.values_BN > 0, -code.values_BN, -torch.inf)
        smallest = -self.shard.largest(kept_BN.amax(), of_replicas=True)
        if not torch.isfinite(smallest):
            return  # nothing was positive, or nothing is finite
        share = 1 - self.spec.threshold_decay if self.threshold > 0 else 1.0
        self.threshold.lerp_(smallest, share)

    def _fit(self, x_BD: Tensor, b_pre_D: Tensor) -> Fit:
        z_BN = self._activations(x_BD, b_pre_D)
        n_kept = self.spec.k * len(x_BD) * self.shard.replicas
        kept_BN = select_of_batch(z_BN.detach(), n_kept, self.shard)
        code = Dense(torch.where(kept_BN, z_BN, 0))
        residual_BD = x_BD - self.decode(code)
        mse = reconstruction_loss(residual_BD, self.spec.mean_predictor_mse)
        return Fit(code, residual_BD, mse, mse)

    def _activations(self, x_BD: Tensor, b_pre_D: Tensor) -> Tensor:
        return torch.relu(linear(x_BD - b_pre_D, self.w_enc, self.b_enc))
