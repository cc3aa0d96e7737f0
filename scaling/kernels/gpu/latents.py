"""The latents' part of a step: gradient sums, projection, Adam, unit rows, average, shadow.

One program for each latent and matrix: the gradient row exists only in its registers.

Shape suffixes: B tokens, D d_model, N latents, K active, P pairs = B * K, A dead latents.
"""

# Inside a kernel nothing has the type that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scaling.kernels.fused import AdamStep, GradientSummary, LatentState, LatentSums, Rows
from scaling.kernels.gpu.segments import (
    Segments,
    cut_pieces,
    latent_row,
    latent_sums,
    pointers,
    row_blocks,
    sort_by_latent,
)
from scaling.kernels.gpu.tuning import Tuning


class Shadow(NamedTuple):
    """Low-precision copies of the two weights."""

    w_enc_ND: Tensor
    w_dec_ND: Tensor


class AdamConstants(NamedTuple):
    """`AdamStep` as torch's fused implementation uses it."""

    grad_factor: float
    beta1: float
    rest1: float
    beta2: float
    rest2: float
    step_size: float
    root_correction2: float
    eps: float
    average_rate: float


def adam_constants(adam: AdamStep) -> AdamConstants:
    return AdamConstants(
        grad_factor=adam.grad_factor,
        beta1=adam.beta1,
        rest1=1 - adam.beta1,
        beta2=adam.beta2,
        rest2=1 - adam.beta2,
        step_size=adam.lr / (1 - adam.beta1**adam.step),
        root_correction2=(1 - adam.beta2**adam.step) ** 0.5,
        eps=adam.eps,
        average_rate=1 - adam.ema_decay,
    )


@triton.jit
def _adam_row(
    weight: tl.tensor,
    grad: tl.tensor,
    moments: tl.tensor,
    places: tl.tensor,
    inside: tl.tensor,
    adam: tl.tensor,
) -> tl.tensor:
    """One update of a row; the moments are renewed in memory, the new weight is returned."""
    factor, beta1, rest1, beta2, rest2, step_size, root_correction2, eps, _ = adam
    exp_avg_ND, exp_avg_sq_ND = moments
    grad = grad * factor
    exp_avg = beta1 * tl.load(exp_avg_ND + places, inside, 0.0) + rest1 * grad
    exp_avg_sq = beta2 * tl.load(exp_avg_sq_ND + places, inside, 0.0) + rest2 * grad * grad
    tl.store(exp_avg_ND + places, exp_avg, mask=inside)
    tl.store(exp_avg_sq_ND + places, exp_avg_sq, mask=inside)
    return weight - step_size * exp_avg / (tl.sqrt(exp_avg_sq) / root_correction2 + eps)


@triton.jit
def _matrix_kernel(
    parameter: tl.tensor,
    segments: tl.tensor,
    weights_P: tl.tensor,
    rows_BD: tl.tensor,
    pieces_SD: tl.tensor,
    extra: tl.tensor,
    squares_N: tl.tensor,
    scale: tl.tensor,
    adam: tl.tensor,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    DECODER: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    UPDATE: tl.constexpr,
    HAS_AVERAGE: tl.constexpr,
    HAS_SHADOW: tl.constexpr,
) -> None:
    """Gradient of one row of one matrix, its squared norm, and (UPDATE) what follows from it."""
    weight_ND, exp_avg_ND, exp_avg_sq_ND, average_ND, shadow_ND = parameter
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < D
    places = latent * D + columns
    grad = scale * latent_row(
        latent, segments, weights_P, rows_BD, pieces_SD, columns, D, WIDTH, PAIRS
    )
    if HAS_EXTRA:
        row_of_N, extra_AD = extra
        row = tl.load(row_of_N + latent).to(tl.int64)
        grad += tl.load(extra_AD + row * D + columns, columns < tl.where(row >= 0, D, 0), 0.0)
    weight = tl.load(weight_ND + places, inside, 0.0)
    if DECODER:
        grad -= tl.sum(grad * weight) * weight
    tl.store(squares_N + latent, tl.sum(grad * grad))
    if UPDATE:
        weight = _adam_row(weight, grad, (exp_avg_ND, exp_avg_sq_ND), places, inside, adam)
        if DECODER:
            weight = weight / tl.sqrt(tl.sum(tl.where(inside, weight * weight, 0.0)))
        tl.store(weight_ND + places, weight, mask=inside)
        if HAS_AVERAGE:
            average = tl.load(average_ND + places, inside, 0.0)
            tl.store(average_ND + places, average + adam[8] * (weight - average), mask=inside)
        if HAS_SHADOW:
            tl.store(shadow_ND + places, weight.to(shadow_ND.dtype.element_ty), mask=inside)


class LatentPass:
    """Gradients of all latents of one step, summed where they are used.

    `low_precision` is the dtype of the gathered token rows.
    """

    def __init__(
        self, state: LatentState, sums: LatentSums, low_precision: torch.dtype, tuning: Tuning
    ) -> None:
        self.state, self.sums, self.tuning = state, sums, tuning
        self.dtype = low_precision
        n_latents = len(state.w_enc.weight)
        self.segments: Segments = sort_by_latent(sums.active.indices_BK, n_latents, tuning)
        self.extra = sums.extra if sums.extra is not None and len(sums.extra.ids_A) else None
        self.row_of_N = self._rows_of_extra(n_latents)
        self.grads_P = sums.grad_values_BK.flatten()[self.segments.order_P]
        self.b_enc_N = latent_sums(self.segments, self.grads_P)
        if self.extra is not None:
            self.b_enc_N[self.extra.ids_A] += self.extra.b_enc_A

    def run(self, adam: AdamStep | None) -> GradientSummary:
        """Updates everything in place unless `adam` is None."""
        state, sums = self.state, self.sums
        b_pre_D = self.b_enc_N @ state.w_enc.weight
        values_P = sums.active.values_BK.flatten()[self.segments.order_P]
        squares = self._matrix(state.w_dec, values_P, sums.residual_BD, adam, decoder=True)
        squares += self._matrix(state.w_enc, self.grads_P, sums.centered_BD, adam, decoder=False)
        squares += self.b_enc_N.square().sum(dtype=torch.float64)
        if adam is not None:
            _update_bias(state.b_enc, self.b_enc_N, adam_constants(adam))
        return GradientSummary(squares.float(), b_pre_D)

    def _matrix(
        self,
        rows: Rows,
        weights_P: Tensor,
        rows_BD: Tensor,
        adam: AdamStep | None,
        *,
        decoder: bool,
    ) -> Tensor:
        """Squared norm of the gradient, float64."""
        gathered_BD = rows_BD.to(self.dtype).contiguous()
        squares_N = weights_P.new_empty(len(rows.weight))
        _matrix_kernel[(len(rows.weight),)](
            self._parameter(rows, decoder=decoder),
            pointers(self.segments),
            weights_P,
            gathered_BD,
            cut_pieces(self.segments, weights_P, gathered_BD, self.tuning),
            self._extra(rows, decoder=decoder),
            squares_N,
            float(self.sums.residual_scale) if decoder else 1.0,
            tuple(AdamConstants(*(0.5,) * 9) if adam is None else adam_constants(adam)),
            **row_blocks(rows_BD.shape[1], self.tuning)._asdict(),
            DECODER=decoder,
            HAS_EXTRA=self.extra is not None,
            UPDATE=adam is not None,
            HAS_AVERAGE=rows.average is not None,
            HAS_SHADOW=self.state.shadow is not None,
        )
        return squares_N.sum(dtype=torch.float64)

    def _parameter(self, rows: Rows, *, decoder: bool) -> tuple[Tensor, ...]:
        """Pointers; a weight stands for what is absent, and its flag is off."""
        shadow = self.state.shadow
        low = rows.weight if shadow is None else shadow.w_dec_ND if decoder else shadow.w_enc_ND
        average = rows.weight if rows.average is None else rows.average
        return rows.weight, rows.exp_avg, rows.exp_avg_sq, average, low

    def _extra(self, rows: Rows, *, decoder: bool) -> tuple[Tensor, Tensor]:
        if self.extra is None:
            return self.row_of_N, rows.weight
        extra_AD = self.extra.w_dec_AD if decoder else self.extra.w_enc_AD
        return self.row_of_N, extra_AD.contiguous()

    def _rows_of_extra(self, n_latents: int) -> Tensor:
        """[N] int32: which further gradient belongs to each latent, -1 = none."""
        if self.extra is None:
            return self.segments.starts_N
        ids_A = self.extra.ids_A
        row_of_N = ids_A.new_full((n_latents,), -1, dtype=torch.int32)
        row_of_N[ids_A] = torch.arange(len(ids_A), dtype=torch.int32, device=ids_A.device)
        return row_of_N


def _update_bias(rows: Rows, grad_N: Tensor, adam: AdamConstants) -> None:
    """The same update for the latent bias, in plain torch: it is a vector."""
    grad_N = grad_N * adam.grad_factor
    rows.exp_avg.mul_(adam.beta1).add_(grad_N, alpha=adam.rest1)
    rows.exp_avg_sq.mul_(adam.beta2).addcmul_(grad_N, grad_N, value=adam.rest2)
    denominator_N = rows.exp_avg_sq.sqrt().div_(adam.root_correction2).add_(adam.eps)
    rows.weight.addcdiv_(rows.exp_avg, denominator_N, value=-adam.step_size)
    if rows.average is not None:
        rows.average.lerp_(rows.weight, adam.average_rate)
