"""The two differentiable operations, written once over what a backend can do without autograd.

Only the encoder's forward matmul touches all N latents. Backward passes touch the B x K active
pairs alone: gathers for what belongs to a token, sums over sorted segments for what belongs to a
latent (no atomics, so the same bits on every run).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from scaling.kernels.auxiliary import by_autograd
from scaling.kernels.fused import AuxiliaryPass, LatentState
from scaling.kernels.interface import Active


class Primitives(Protocol):
    """The sparse sums of one backend."""

    def topk(self, centered_BD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, k: int) -> Active:
        """The k largest pre-activations of tokens from which b_pre was subtracted."""
        ...

    def token_rows(self, pairs: Active, w_ND: Tensor) -> Tensor:
        """For each token, the sum of its latents' rows of w times its values, [B, D]."""
        ...

    def latent_rows(self, pairs: Active, x_BD: Tensor, n_latents: int) -> Tensor:
        """For each latent, the sum of its tokens' rows of x times their values, [N, D]."""
        ...

    def latent_sums(self, pairs: Active, n_latents: int) -> Tensor:
        """For each latent, the sum of its values over the tokens, [N]."""
        ...

    def dot_products(self, grad_BD: Tensor, w_ND: Tensor, indices_BK: Tensor) -> Tensor:
        """<grad of token b, row of w for its j-th latent>, [B, K]."""
        ...


class SparseKernels:
    """`Kernels` from `Primitives`: backends inherit this and implement those."""

    def encode_topk(
        self: Primitives,
        x_BD: Tensor,
        w_enc_ND: Tensor,
        b_enc_N: Tensor,
        k: int,
        *,
        b_pre_D: Tensor,
    ) -> Active:
        """See `Kernels.encode_topk`."""
        values_BK, indices_BK = _EncodeTopK.apply(self, x_BD, w_enc_ND, b_enc_N, b_pre_D, k)  # type: ignore[misc]
        return Active(values_BK, indices_BK)

    def decode(self: Primitives, active: Active, w_dec_ND: Tensor) -> Tensor:
        """See `Kernels.decode`."""
        return _Decode.apply(self, active.values_BK, active.indices_BK, w_dec_ND)  # type: ignore[return-value]

    def auxiliary_pass(
        self,
        centered_BD: Tensor,
        target_BD: Tensor,
        state: LatentState,
        ids_A: Tensor,
        k: int,
        residual_scale: float,
    ) -> AuxiliaryPass:
        """See `FusedKernels.auxiliary_pass`; for backends without a way of their own."""
        return by_autograd(self, centered_BD, target_BD, state, ids_A, k, residual_scale)  # type: ignore[arg-type]


class _EncodeTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: Primitives,
        x_BD: Tensor,
        w_enc_ND: Tensor,
        b_enc_N: Tensor,
        b_pre_D: Tensor,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        centered_BD = x_BD - b_pre_D
        values_BK, indices_BK = backend.topk(centered_BD, w_enc_ND, b_enc_N, k)
        ctx.backend = backend
        ctx.save_for_backward(centered_BD, w_enc_ND, indices_BK)
        ctx.mark_non_differentiable(indices_BK)
        return values_BK, indices_BK

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        grad_BK: Tensor = grad_outputs[0]
        backend: Primitives = ctx.backend
        centered_BD, w_enc_ND, indices_BK = ctx.saved_tensors
        pairs = Active(grad_BK, indices_BK)
        grad_b_enc_N = backend.latent_sums(pairs, w_enc_ND.shape[0])
        grad_w_enc_ND = backend.latent_rows(pairs, centered_BD, w_enc_ND.shape[0])
        # Summing over the batch first turns the pre-bias gradient into one vector product.
        grad_b_pre_D = -(grad_b_enc_N @ w_enc_ND)
        grad_x_BD = backend.token_rows(pairs, w_enc_ND) if ctx.needs_input_grad[1] else None
        return None, grad_x_BD, grad_w_enc_ND, grad_b_enc_N, grad_b_pre_D, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: Primitives, values_BK: Tensor, indices_BK: Tensor, w_dec_ND: Tensor
    ) -> Tensor:
        ctx.backend = backend
        ctx.save_for_backward(values_BK, indices_BK, w_dec_ND)
        return backend.token_rows(Active(values_BK, indices_BK), w_dec_ND)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        grad_BD: Tensor = grad_outputs[0]
        backend: Primitives = ctx.backend
        values_BK, indices_BK, w_dec_ND = ctx.saved_tensors
        grad_values_BK = backend.dot_products(grad_BD, w_dec_ND, indices_BK)
        pairs = Active(values_BK, indices_BK)
        grad_w_dec_ND = backend.latent_rows(pairs, grad_BD, w_dec_ND.shape[0])
        return None, grad_values_BK, None, grad_w_dec_ND
