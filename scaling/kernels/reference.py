"""The definition of correct: the paper's equations, dense, differentiated by autograd.

Slow and simple on purpose. Every other backend is compared with this one, on every output and
every gradient, in float32 and float64. It stores the [B, N] pre-activations; nothing else may.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.kernels.interface import Active


def encode_topk(
    x_BD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, k: int, *, b_pre_D: Tensor
) -> Active:
    """TopK_k(W_enc (x - b_pre) + b_enc) (Gao et al. 2024, section 2.3), before the ReLU."""
    pre_BN = (x_BD - b_pre_D) @ w_enc_ND.T + b_enc_N
    # A stable sort keeps equal values in id order: the lowest latent id wins a tie.
    values_BN, indices_BN = torch.sort(pre_BN, dim=1, descending=True, stable=True)
    return Active(values_BN[:, :k], indices_BN[:, :k])


def decode(active: Active, w_dec_ND: Tensor) -> Tensor:
    """W_dec z for the sparse code z, as a dense matrix product."""
    n_tokens = active.values_BK.shape[0]
    zeros_BN = active.values_BK.new_zeros(n_tokens, w_dec_ND.shape[0])
    return zeros_BN.scatter(1, active.indices_BK, active.values_BK) @ w_dec_ND
