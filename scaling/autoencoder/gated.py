"""The gated autoencoder (Rajamanoharan et al. 2024, arXiv 2404.16014, section 3.2).

    m      = W_enc (x - b_pre)
    gate   = m + b_enc                        which latents are active
    mag    = relu(exp(r_mag) m + b_mag)       and how much: the same weights, rescaled by latent
    z      = mag where gate > 0, else 0
    L      = |x - xhat|^2 + lambda * sum_i relu(gate)_i + |x - xhat_gate|^2
    xhat_gate = sg(W_dec) relu(gate) + sg(b_pre)

The penalty falls on the gate alone, so magnitudes are not shrunk. No gradient of the first term
passes the gate; the third trains it, through a decoder that is held fixed there (sg): it is the
magnitudes that decide what the decoder learns. b_pre learns from that term in the encoder, where
the paper does not hold it fixed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from scaling.autoencoder.dense import DenseAutoencoder, PenalizedSpec
from scaling.autoencoder.losses import reconstruction_loss


class GatedAutoencoder(DenseAutoencoder[PenalizedSpec]):
    """See the module's equations. b_enc is the gate's bias."""

    MORE_PER_LATENT: ClassVar[dict[str, float]] = {"r_mag": 0.0, "b_mag": 0.0}
    r_mag: Tensor
    b_mag: Tensor

    def activations(self, pre_BN: Tensor) -> Tensor:
        magnitude_BN = torch.relu(self.r_mag.exp() * pre_BN + self.b_mag)
        return torch.where(pre_BN + self.b_enc > 0, magnitude_BN, 0)

    def sparsity(self, pre_BN: Tensor, z_BN: Tensor) -> Tensor:
        return self.gate(pre_BN).sum(dim=1).mean()

    def priced(self, x_BD: Tensor, pre_BN: Tensor, z_BN: Tensor) -> tuple[Tensor, Tensor]:
        gate_BN = self.gate(pre_BN)  # once for both: it is as large as the code
        return gate_BN.sum(dim=1).mean(), self.auxiliary(x_BD, gate_BN)

    def auxiliary(self, x_BD: Tensor, gate_BN: Tensor) -> Tensor:
        """How well the gate's own values reconstruct, through a decoder that does not learn."""
        partial_BD = gate_BN @ self.w_dec.detach()
        recon_BD = self.shard.sum_over_shards(partial_BD) + self.b_pre.detach()
        return reconstruction_loss(x_BD - recon_BD, self.spec.mean_predictor_mse)

    def gate(self, pre_BN: Tensor) -> Tensor:
        """relu(gate), [B, N]."""
        return torch.relu(pre_BN + self.b_enc)
