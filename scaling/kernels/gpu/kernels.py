"""The GPU backend as `Kernels` (for autograd) and as `FusedKernels` (for the fused engine)."""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.kernels.autograd import SparseKernels
from scaling.kernels.fused import AdamStep, GradientSummary, LatentState, LatentSums, TokenPass
from scaling.kernels.gpu import segments, tokens
from scaling.kernels.gpu.encode import (
    ROW_ALIGNMENT,
    Encoder,
    aligned_rows,
    dense_products,
    token_chunks,
)
from scaling.kernels.gpu.latents import LatentPass, Shadow
from scaling.kernels.gpu.tuning import Tuning, default_tuning
from scaling.kernels.interface import Active

OPERANDS = {"float32": torch.float32, "bf16": torch.bfloat16}


class TritonKernels(SparseKernels):
    """float32 weights, gradients and sums; `matmul` is the dtype of the operands.

    `float32`: the oracle's results up to rounding. `bf16`: the encoder's products and all gathers
    take operands rounded to bf16 and accumulate in float32; the k largest are exact for those.
    """

    def __init__(self, matmul: str, tuning: Tuning | None = None) -> None:
        if matmul not in OPERANDS:
            raise ValueError(f"matmul={matmul} is not one of {', '.join(OPERANDS)}")
        self.operand = OPERANDS[matmul]
        self.tuning = tuning or default_tuning(matmul)
        self.encoder = Encoder(self.tuning)

    @property
    def redone_rows(self) -> int:
        """Tokens whose candidates did not fit and were selected again, so far."""
        return self.encoder.redone_rows

    # What `SparseKernels` is made of.

    def topk(self, centered_BD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, k: int) -> Active:
        return self.encoder.topk(self._low(centered_BD), self._low(w_enc_ND), b_enc_N, k)

    def token_rows(self, pairs: Active, w_ND: Tensor) -> Tensor:
        w_ND = self._low(w_ND)
        if not self._dense_pays(pairs, len(w_ND)):
            return tokens.token_rows(pairs, w_ND, self.tuning)
        w_ND = aligned_rows(w_ND)
        parts = (self._code(pairs, chunk, len(w_ND)) for chunk in self._chunks(pairs, len(w_ND)))
        return torch.cat([dense_products(code_TN, w_ND) for code_TN in parts])

    def latent_rows(self, pairs: Active, x_BD: Tensor, n_latents: int) -> Tensor:
        x_BD = self._low(x_BD)
        if not self._dense_pays(pairs, n_latents):
            by_latent = segments.sort_by_latent(pairs.indices_BK, n_latents, self.tuning)
            return segments.latent_rows(by_latent, pairs.values_BK, x_BD, self.tuning)
        n_rows = n_latents + -n_latents % ROW_ALIGNMENT
        sums_ND = pairs.values_BK.new_zeros(n_rows, x_BD.shape[1])
        for chunk in self._chunks(pairs, n_rows):
            sums_ND += dense_products(self._code(pairs, chunk, n_rows).T, x_BD[chunk])
        return sums_ND[:n_latents]

    def latent_sums(self, pairs: Active, n_latents: int) -> Tensor:
        if self._dense_pays(pairs, n_latents):
            sums_N = pairs.values_BK.new_zeros(n_latents)
            for chunk in self._chunks(pairs, n_latents):
                sums_N += self._code(pairs, chunk, n_latents).sum(dim=0, dtype=torch.float32)
            return sums_N
        by_latent = segments.sort_by_latent(pairs.indices_BK, n_latents, self.tuning)
        return segments.latent_sums(by_latent, pairs.values_BK.flatten()[by_latent.order_P])

    def dot_products(self, grad_BD: Tensor, w_ND: Tensor, indices_BK: Tensor) -> Tensor:
        pairs, w_ND = Active(grad_BD, indices_BK), self._low(w_ND)
        if not self._dense_pays(pairs, len(w_ND)):
            return tokens.dot_products(grad_BD, w_ND, indices_BK, self.tuning)
        grad_BD, w_ND = self._low(grad_BD), aligned_rows(w_ND)
        parts = [
            dense_products(grad_BD[chunk], w_ND.T).gather(1, indices_BK[chunk])
            for chunk in self._chunks(pairs, len(w_ND))
        ]
        return torch.cat(parts)

    # The passes of a fused step.

    def make_shadow(self, w_enc_ND: Tensor, w_dec_ND: Tensor) -> Shadow | None:
        if self.operand == torch.float32:
            return None
        return Shadow(w_enc_ND.detach().to(self.operand), w_dec_ND.detach().to(self.operand))

    def select(
        self,
        centered_BD: Tensor,
        w_enc_ND: Tensor,
        b_enc_N: Tensor,
        k: int,
        shadow: Shadow | None,
    ) -> Active:
        operand_ND = w_enc_ND if shadow is None else shadow.w_enc_ND
        found = self.encoder.topk(self._low(centered_BD), operand_ND, b_enc_N, k)
        return Active(found.values_BK.relu_(), found.indices_BK)

    def token_pass(
        self,
        centered_BD: Tensor,
        active: Active,
        w_dec_ND: Tensor,
        residual_scale: float,
        shadow: Shadow | None,
    ) -> TokenPass:
        rows_ND = w_dec_ND if shadow is None else shadow.w_dec_ND
        return tokens.token_pass(centered_BD, active, rows_ND, residual_scale, self.tuning)

    def summarize_gradients(self, state: LatentState, sums: LatentSums) -> GradientSummary:
        return LatentPass(state, sums, self.operand, self.tuning).run(None)

    def update_latents(
        self, state: LatentState, sums: LatentSums, adam: AdamStep
    ) -> GradientSummary:
        return LatentPass(state, sums, self.operand, self.tuning).run(adam)

    def _low(self, operand: Tensor) -> Tensor:
        return operand.detach().to(self.operand).contiguous()

    def _dense_pays(self, pairs: Active, n_latents: int) -> bool:
        return n_latents <= self.tuning.dense_below * pairs.indices_BK.shape[1]

    def _chunks(self, pairs: Active, n_latents: int) -> list[slice]:
        return list(token_chunks(len(pairs.indices_BK), 4 * n_latents, self.tuning))

    def _code(self, pairs: Active, chunk: slice, n_latents: int) -> Tensor:
        """The tokens' values among zeros, [T, N], as an operand of a matrix product."""
        values_TK = pairs.values_BK[chunk].to(self.operand)
        zeros_TN = values_TK.new_zeros(len(values_TK), n_latents)
        return zeros_TN.scatter_(1, pairs.indices_BK[chunk], values_TK)
