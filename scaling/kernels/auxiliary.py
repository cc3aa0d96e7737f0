"""The auxiliary pass by autograd over compacted rows, for any backend's two operations."""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.kernels.fused import AuxiliaryPass, LatentState, RowGradients
from scaling.kernels.interface import Active, Kernels


def by_autograd(
    kernels: Kernels,
    centered_BD: Tensor,
    target_BD: Tensor,
    state: LatentState,
    ids_A: Tensor,
    k: int,
    residual_scale: float,
) -> AuxiliaryPass:
    """See `FusedKernels.auxiliary_pass`."""
    parts = (state.w_enc.weight, state.w_dec.weight, state.b_enc.weight)
    rows = [weight.detach()[ids_A].requires_grad_() for weight in parts]
    w_enc_AD, w_dec_AD, b_enc_A = rows
    with torch.enable_grad():
        zero_D = centered_BD.new_zeros(centered_BD.shape[1])
        found = kernels.encode_topk(centered_BD, w_enc_AD, b_enc_A, k, b_pre_D=zero_D)
        active = Active(torch.relu(found.values_BK), found.indices_BK)
        recon_BD = kernels.decode(active, w_dec_AD)
        error_BD = target_BD - recon_BD.detach()
        gradients = torch.autograd.grad(recon_BD, rows, residual_scale * error_BD)
    return AuxiliaryPass(error_BD.square().sum(), RowGradients(ids_A, *gradients))
