"""Whole passes over tokens or latents in native.cpp, taking tensors."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from scaling.kernels.cpu.native import functions, pointer, threads
from scaling.kernels.fused import AdamStep, LatentState, LatentSums, Rows

CHUNK = 64
"""Latents that one thread takes at a time (kChunk in native.cpp)."""


class _Rows(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("weight", "exp_avg", "exp_avg_sq", "average")]


class _Adam(ctypes.Structure):
    _fields_ = [
        (name, c_float)
        for name in (
            "step_size",
            "keep2",
            "grow1",
            "grow2",
            "eps",
            "root_correction",
            "ema_weight",
            "grad_factor",
        )
    ]


class _Sums(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("starts", "pairs", "values", "grad_values")),
        *((name, c_void_p) for name in ("centered", "residual")),
        ("k", c_int64),
        ("residual_scale", c_float),
        *((name, c_void_p) for name in ("extra_of", "extra_enc", "extra_dec", "extra_bias")),
    ]


def shadow(rows_ND: Tensor, copy_ND: Tensor, norms_N: Tensor, errors_N: Tensor) -> None:
    """Write the bf16 copies of rows, their norms, and the norms of what the copies lost."""
    functions().sae_shadow(
        pointer(rows_ND),
        *map(c_int64, rows_ND.shape),
        pointer(copy_ND, torch.bfloat16),
        pointer(norms_N),
        pointer(errors_N),
        threads(),
    )


def token_pass(
    centered_BD: Tensor, values_BK: Tensor, ids_BK: Tensor, w_dec_ND: Tensor, residual_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual [B, D], gradients of the values [B, K], squared residual norms [B] (float64)."""
    residual_BD, grads_BK = torch.empty_like(centered_BD), torch.empty_like(values_BK)
    squares_B = torch.empty(len(centered_BD), dtype=torch.float64)
    functions().sae_token_pass(
        pointer(centered_BD),
        pointer(ids_BK, torch.int64),
        pointer(values_BK),
        pointer(w_dec_ND),
        *map(c_int64, (*ids_BK.shape, centered_BD.shape[1])),
        c_float(residual_scale),
        pointer(residual_BD),
        pointer(grads_BK),
        pointer(squares_B, torch.float64),
        threads(),
    )
    return residual_BD, grads_BK, squares_B


def keep_topk_(pre_BN: Tensor, k: int) -> None:
    """Set to 0, in place, all but each row's k largest values, and of these what is negative.

    The lowest id wins a tie. NaN is kept.
    """
    functions().sae_keep_topk(pointer(pre_BN), *map(c_int64, (*pre_BN.shape, k)), threads())


def group_pairs(ids_BK: Tensor, values_BK: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """Pairs (token * K + slot) of positive value grouped by latent: starts [N + 1], pairs."""
    if ids_BK.numel() >= 2**31:
        raise ValueError(
            f"{ids_BK.numel():,} active pairs in a batch; at most 2^31 - 1 are grouped"
        )
    starts = torch.empty(n_latents + 1, dtype=torch.int64)
    pairs = torch.empty(ids_BK.numel(), dtype=torch.int32)
    functions().sae_group_pairs(
        pointer(ids_BK, torch.int64),
        pointer(values_BK),
        c_int64(ids_BK.numel()),
        c_int64(n_latents),
        pointer(starts, torch.int64),
        pointer(pairs, torch.int32),
    )
    return starts, pairs


def update_latents(
    state: LatentState,
    sums: LatentSums,
    adam: AdamStep | None,
    shadow_of_w_enc: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """One pass over the latents; without `adam` it only measures.

    Returns the sum of squared gradients (0-d) and the sum over latents of bias gradient times
    encoder row before the update, [D].
    """
    n_latents, d_model = state.w_enc.weight.shape
    starts, pairs = group_pairs(sums.active.indices_BK, sums.active.values_BK, n_latents)
    extra_of = _extra_rows(sums, n_latents)
    squares_N = torch.empty(n_latents, dtype=torch.float64)
    bias_rows_CD = torch.empty(-(-n_latents // CHUNK), d_model)
    native_sums = _sums(sums, starts, pairs, extra_of)
    native_adam = None if adam is None else _adam(adam)
    copy, norms, errors = shadow_of_w_enc or (None, None, None)
    functions().sae_update_latents(
        ctypes.byref(native_sums),
        *(ctypes.byref(_rows(rows)) for rows in (state.w_enc, state.w_dec, state.b_enc)),
        None if native_adam is None else ctypes.byref(native_adam),
        c_int64(n_latents),
        c_int64(d_model),
        None if copy is None else pointer(copy, torch.bfloat16),
        None if norms is None else pointer(norms),
        None if errors is None else pointer(errors),
        pointer(squares_N, torch.float64),
        pointer(bias_rows_CD),
        threads(),
    )
    return squares_N.sum(), bias_rows_CD.sum(dim=0)


def _extra_rows(sums: LatentSums, n_latents: int) -> Tensor | None:
    if sums.extra is None:
        return None
    row_of_N = torch.full((n_latents,), -1, dtype=torch.int32)
    row_of_N[sums.extra.ids_A] = torch.arange(len(sums.extra.ids_A), dtype=torch.int32)
    return row_of_N


def _sums(sums: LatentSums, starts: Tensor, pairs: Tensor, extra_of: Tensor | None) -> _Sums:
    extra = sums.extra
    return _Sums(
        starts.data_ptr(),
        pairs.data_ptr(),
        pointer(sums.active.values_BK),
        pointer(sums.grad_values_BK),
        pointer(sums.centered_BD),
        pointer(sums.residual_BD),
        sums.active.values_BK.shape[1],
        sums.residual_scale,
        None if extra_of is None else extra_of.data_ptr(),
        *(
            (None, None, None)
            if extra is None
            else map(pointer, (extra.w_enc_AD, extra.w_dec_AD, extra.b_enc_A))
        ),
    )


def _adam(adam: AdamStep) -> _Adam:
    return _Adam(
        adam.lr / (1 - adam.beta1**adam.step),
        adam.beta2,
        1 - adam.beta1,
        1 - adam.beta2,
        adam.eps,
        (1 - adam.beta2**adam.step) ** 0.5,
        1 - adam.ema_decay,
        adam.grad_factor,
    )


def _rows(rows: Rows) -> _Rows:
    return _Rows(*(None if tensor is None else pointer(tensor) for tensor in rows))
