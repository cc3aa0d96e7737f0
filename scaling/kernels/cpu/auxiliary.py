"""The auxiliary pass on CPU: matmuls over the dead latents, one cached tile of tokens at a time.

A gather of k_aux rows per token is 10 to 12 times slower per multiply-add than a matmul, and k_aux
is a fair share of the dead latents unless these are very many; then the sparse way is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.kernels.cpu import passes
from scaling.kernels.fused import AuxiliaryPass, LatentState, RowGradients

TILE_VALUES = 2**20
"""Values of the code computed at a time: 4 MB in float32, so that they stay in the cache."""


def dense_pass(
    centered_BD: Tensor,
    target_BD: Tensor,
    state: LatentState,
    ids_A: Tensor,
    k: int,
    residual_scale: float,
) -> AuxiliaryPass:
    """See `FusedKernels.auxiliary_pass`."""
    w_enc_AD, w_dec_AD = state.w_enc.weight[ids_A], state.w_dec.weight[ids_A]
    b_enc_A = state.b_enc.weight[ids_A]
    grads = RowGradients(
        ids_A, torch.zeros_like(w_enc_AD), torch.zeros_like(w_dec_AD), torch.zeros_like(b_enc_A)
    )
    squared_error = torch.zeros((), dtype=torch.float64)
    tile = max(1, TILE_VALUES // len(ids_A))
    for x_TD, target_TD in zip(centered_BD.split(tile), target_BD.split(tile), strict=True):
        code_TA = torch.addmm(b_enc_A, x_TD, w_enc_AD.T)
        passes.keep_topk_(code_TA, k)
        error_TD = torch.addmm(target_TD, code_TA, w_dec_AD, alpha=-1)
        squared_error += error_TD.square().sum()
        error_TD *= residual_scale  # now the gradient with respect to the reconstruction
        grads.w_dec_AD.addmm_(code_TA.T, error_TD)
        grad_code_TA = (error_TD @ w_dec_AD.T).mul_(code_TA > 0)
        grads.w_enc_AD.addmm_(grad_code_TA.T, x_TD)
        grads.b_enc_A.add_(grad_code_TA.sum(dim=0))
    return AuxiliaryPass(squared_error, grads)
