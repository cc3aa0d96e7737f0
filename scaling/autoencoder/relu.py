"""The ReLU autoencoder with an L1 penalty weighted by decoder norms (Conerly et al. 2024).

    z = relu(W_enc (x - b_pre) + b_enc)
    L = |x - xhat|^2 + lambda * sum_i z_i |w_dec_i|

Weighted so, the penalty cannot be lowered by shrinking z and lengthening the decoder's rows, which
may then have any norm. With unit rows it is the plain L1 norm of z.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.autoencoder.dense import DenseAutoencoder, PenalizedSpec, weighted_l1


class ReLUAutoencoder(DenseAutoencoder[PenalizedSpec]):
    """See the module's equations."""

    def activations(self, pre_BN: Tensor) -> Tensor:
        return torch.relu(pre_BN + self.b_enc)

    def sparsity(self, pre_BN: Tensor, z_BN: Tensor) -> Tensor:
        return weighted_l1(z_BN, self.w_dec)
