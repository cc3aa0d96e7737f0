"""Candidates for the TopK, as native.cpp filters, finishes and rescores them."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from scaling.kernels.cpu.native import functions, pointer, threads


class _Slack(ctypes.Structure):
    _fields_ = [("token", c_void_p), ("latent", c_void_p), ("relative", c_float)]


class _Candidates(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("values", "ids", "counts", "thresholds")),
        ("capacity", c_int64),
        ("k", c_int64),
    ]


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
        functions().sae_filter_tile(
            c_void_p(tile_BM.data_ptr()),
            c_int(tile_BM.dtype == torch.bfloat16),
            *map(c_int64, (*tile_BM.shape, tile_BM.stride(0))),
            pointer(b_enc_N),
            c_int64(first_latent),
            ctypes.byref(_slack(slack)),
            ctypes.byref(self._struct()),
            threads(),
        )

    def finish_exact(self, values_BK: Tensor, ids_BK: Tensor) -> None:
        """Write the k best, given that all scores were exact."""
        functions().sae_finish_exact(
            ctypes.byref(self._struct()),
            c_int64(len(values_BK)),
            pointer(values_BK),
            pointer(ids_BK, torch.int64),
            threads(),
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
        return functions().sae_finish_rescored(
            ctypes.byref(self._struct()),
            pointer(centered_BD),
            pointer(w_enc_ND),
            c_int64(len(values_BK)),
            c_int64(centered_BD.shape[1]),
            pointer(b_enc_N),
            ctypes.byref(_slack(slack)),
            pointer(values_BK),
            pointer(ids_BK, torch.int64),
            threads(),
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


def _slack(slack: Slack | None) -> _Slack:
    if slack is None:
        return _Slack(None, None, 0.0)
    return _Slack(pointer(slack.token_B), pointer(slack.latent_N), slack.relative)
