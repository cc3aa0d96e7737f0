"""The CPU backend as `Kernels` (for autograd) and as `FusedKernels` (for the fused engine)."""

from __future__ import annotations

from torch import Tensor

from scaling.kernels.cpu import passes
from scaling.kernels.cpu.auxiliary import dense_pass
from scaling.kernels.cpu.select import Selector, Shadow, make_shadow
from scaling.kernels.fused import (
    AdamStep,
    AuxiliaryPass,
    GradientSummary,
    LatentState,
    LatentSums,
    TokenPass,
)
from scaling.kernels.interface import Active
from scaling.kernels.torch_sparse import DENSE_BELOW, TorchKernels


class CpuKernels(TorchKernels):
    """float32 on CPU. `matmul` is one of `scaling.kernels.cpu.select.MATMULS`."""

    def __init__(self, matmul: str) -> None:
        self.selector = Selector(matmul)

    def topk(self, centered_BD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, k: int) -> Active:
        return self.selector.topk(centered_BD, w_enc_ND, b_enc_N, k)

    def make_shadow(self, w_enc_ND: Tensor, w_dec_ND: Tensor) -> Shadow | None:
        return make_shadow(w_enc_ND) if self.selector.needs_shadow else None

    def select(
        self,
        centered_BD: Tensor,
        w_enc_ND: Tensor,
        b_enc_N: Tensor,
        k: int,
        shadow: Shadow | None,
    ) -> Active:
        found = self.selector.topk(centered_BD, w_enc_ND, b_enc_N, k, shadow)
        return Active(found.values_BK.relu_(), found.indices_BK)

    def token_pass(
        self,
        centered_BD: Tensor,
        active: Active,
        w_dec_ND: Tensor,
        residual_scale: float,
        shadow: Shadow | None,
    ) -> TokenPass:
        residual_BD, grads_BK, squares_B = passes.token_pass(
            centered_BD, active.values_BK, active.indices_BK, w_dec_ND, residual_scale
        )
        return TokenPass(residual_BD, grads_BK, squares_B.sum())

    def auxiliary_pass(
        self,
        centered_BD: Tensor,
        target_BD: Tensor,
        state: LatentState,
        ids_A: Tensor,
        k: int,
        residual_scale: float,
    ) -> AuxiliaryPass:
        way = dense_pass if len(ids_A) <= DENSE_BELOW * k else super().auxiliary_pass
        return way(centered_BD, target_BD, state, ids_A, k, residual_scale)

    def summarize_gradients(self, state: LatentState, sums: LatentSums) -> GradientSummary:
        return GradientSummary(*passes.update_latents(state, sums, None, None))

    def update_latents(
        self, state: LatentState, sums: LatentSums, adam: AdamStep
    ) -> GradientSummary:
        return GradientSummary(*passes.update_latents(state, sums, adam, state.shadow))
