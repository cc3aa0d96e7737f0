"""The functions of native.cpp, taking tensors. Dense row-major float32 is checked here, once."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from scaling.kernels.cpu import build
from scaling.kernels.fused import AdamStep, LatentState, LatentSums, Rows

CHUNK = 64
"""Latents that one thread takes at a time (kChunk in native.cpp)."""


class _Slack(ctypes.Structure):
    _fields_ = [("token", c_void_p), ("latent", c_void_p), ("relative", c_float)]


class _Candidates(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("values", "ids", "counts", "thresholds")),
        ("capacity", c_int64),
        ("k", c_int64),
    ]


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


@cache
def _library() -> ctypes.CDLL:
    library = build.native_library()
    library.sae_finish_rescored.restype = c_int64
    return library


@dataclass(frozen=True)
class Slack:
    """Bound on the error of approximate scores: token[b] * latent[n] + relative * |score|."""

    token_B: Tensor
    latent_N: Tensor
    relative: float


class Candidates:
    """Each token's candidates for the TopK, filtered tile by tile; one token tile at a time."""

    def __init__(self, values_BC: Tensor, ids_BC: Tensor, k: int) -> None:
        self.k = k
        self.values_BC, self.ids_BC = values_BC, ids_BC
        self.counts_B = torch.zeros(len(values_BC), dtype=torch.int32)
        self.thresholds_B = torch.full((len(values_BC),), -torch.inf)

    def filter_tile(
        self, tile_BM: Tensor, b_enc_N: Tensor, first_latent: int, slack: Slack | None
    ) -> None:
        """Take from pre-activations without bias ([tokens, M], float32 or bf16) what may count."""
        _library().sae_filter_tile(
            c_void_p(tile_BM.data_ptr()),
            c_int(tile_BM.dtype == torch.bfloat16),
            *map(c_int64, (*tile_BM.shape, tile_BM.stride(0))),
            _pointer(b_enc_N),
            c_int64(first_latent),
            ctypes.byref(_slack(slack)),
            ctypes.byref(self._struct()),
            _threads(),
        )

    def finish_exact(self, values_BK: Tensor, ids_BK: Tensor) -> None:
        """Write the k best, given that all scores were exact."""
        _library().sae_finish_exact(
            ctypes.byref(self._struct()),
            c_int64(len(values_BK)),
            _pointer(values_BK),
            _pointer(ids_BK, torch.int64),
            _threads(),
        )

    def finish_rescored(
        self,
        centered_BD: Tensor,
        w_enc_ND: Tensor,
        b_enc_N: Tensor,
        slack: Slack,
        values_BK: Tensor,
        ids_BK: Tensor,
    ) -> int:
        """Write the k best by exact scores; returns how many candidates there were.

        Rows whose count is -1 (too many candidates) are left unwritten.
        """
        return _library().sae_finish_rescored(
            ctypes.byref(self._struct()),
            _pointer(centered_BD),
            _pointer(w_enc_ND),
            c_int64(len(values_BK)),
            c_int64(centered_BD.shape[1]),
            _pointer(b_enc_N),
            ctypes.byref(_slack(slack)),
            _pointer(values_BK),
            _pointer(ids_BK, torch.int64),
            _threads(),
        )

    def _struct(self) -> _Candidates:
        return _Candidates(
            self.values_BC.data_ptr(),
            self.ids_BC.data_ptr(),
            self.counts_B.data_ptr(),
            self.thresholds_B.data_ptr(),
            self.values_BC.shape[1],
            self.k,
        )


class CandidateBuffers:
    """The memory of candidates, kept from call to call and grown when needed."""

    def __init__(self) -> None:
        self.values, self.ids = torch.empty(0), torch.empty(0, dtype=torch.int32)

    def fresh(self, n_tokens: int, k: int, capacity: int) -> Candidates:
        """No candidates yet, and room for `capacity` of each token; ends all use of earlier ones.

        The capacity must leave room for 16 beside the k that always stay.
        """
        shape = (n_tokens, capacity)
        if n_tokens * capacity > len(self.values):
            self.values = torch.empty(n_tokens * capacity)
            self.ids = torch.empty(n_tokens * capacity, dtype=torch.int32)
        values, ids = (flat[: n_tokens * capacity].view(shape) for flat in (self.values, self.ids))
        return Candidates(values, ids, k)


def shadow(rows_ND: Tensor, copy_ND: Tensor, norms_N: Tensor, errors_N: Tensor) -> None:
    """Write the bf16 copies of rows, their norms, and the norms of what the copies lost."""
    _library().sae_shadow(
        _pointer(rows_ND),
        *map(c_int64, rows_ND.shape),
        _pointer(copy_ND, torch.bfloat16),
        _pointer(norms_N),
        _pointer(errors_N),
        _threads(),
    )


def token_pass(
    centered_BD: Tensor, values_BK: Tensor, ids_BK: Tensor, w_dec_ND: Tensor, residual_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual [B, D], gradients of the values [B, K], squared residual norms [B] (float64)."""
    residual_BD, grads_BK = torch.empty_like(centered_BD), torch.empty_like(values_BK)
    squares_B = torch.empty(len(centered_BD), dtype=torch.float64)
    _library().sae_token_pass(
        _pointer(centered_BD),
        _pointer(ids_BK, torch.int64),
        _pointer(values_BK),
        _pointer(w_dec_ND),
        *map(c_int64, (*ids_BK.shape, centered_BD.shape[1])),
        c_float(residual_scale),
        _pointer(residual_BD),
        _pointer(grads_BK),
        _pointer(squares_B, torch.float64),
        _threads(),
    )
    return residual_BD, grads_BK, squares_B


def keep_topk_(pre_BN: Tensor, k: int) -> None:
    """Set to 0, in place, all but each row's k largest values, and of these what is negative.

    The lowest id wins a tie. NaN is kept.
    """
    _library().sae_keep_topk(_pointer(pre_BN), *map(c_int64, (*pre_BN.shape, k)), _threads())


def group_pairs(ids_BK: Tensor, values_BK: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """Pairs (token * K + slot) of positive value grouped by latent: starts [N + 1], pairs."""
    if ids_BK.numel() >= 2**31:
        raise ValueError(
            f"{ids_BK.numel():,} active pairs in a batch; at most 2^31 - 1 are grouped"
        )
    starts = torch.empty(n_latents + 1, dtype=torch.int64)
    pairs = torch.empty(ids_BK.numel(), dtype=torch.int32)
    _library().sae_group_pairs(
        _pointer(ids_BK, torch.int64),
        _pointer(values_BK),
        c_int64(ids_BK.numel()),
        c_int64(n_latents),
        _pointer(starts, torch.int64),
        _pointer(pairs, torch.int32),
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
    _library().sae_update_latents(
        ctypes.byref(native_sums),
        *(ctypes.byref(_rows(rows)) for rows in (state.w_enc, state.w_dec, state.b_enc)),
        None if native_adam is None else ctypes.byref(native_adam),
        c_int64(n_latents),
        c_int64(d_model),
        None if copy is None else _pointer(copy, torch.bfloat16),
        None if norms is None else _pointer(norms),
        None if errors is None else _pointer(errors),
        _pointer(squares_N, torch.float64),
        _pointer(bias_rows_CD),
        _threads(),
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
        _pointer(sums.active.values_BK),
        _pointer(sums.grad_values_BK),
        _pointer(sums.centered_BD),
        _pointer(sums.residual_BD),
        sums.active.values_BK.shape[1],
        sums.residual_scale,
        None if extra_of is None else extra_of.data_ptr(),
        *(
            (None, None, None)
            if extra is None
            else map(_pointer, (extra.w_enc_AD, extra.w_dec_AD, extra.b_enc_A))
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
    return _Rows(*(None if tensor is None else _pointer(tensor) for tensor in rows))


def _slack(slack: Slack | None) -> _Slack:
    if slack is None:
        return _Slack(None, None, 0.0)
    return _Slack(_pointer(slack.token_B), _pointer(slack.latent_N), slack.relative)


def _pointer(tensor: Tensor, dtype: torch.dtype = torch.float32) -> c_void_p:
    """Raises ValueError where the native code would read something else than it was given."""
    if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"the cpu kernels need dense {dtype} in main memory, not "
            f"{tensor.dtype} on {tensor.device} with strides {tensor.stride()}"
        )
    return c_void_p(tensor.data_ptr())


def _threads() -> c_int:
    return c_int(torch.get_num_threads())
