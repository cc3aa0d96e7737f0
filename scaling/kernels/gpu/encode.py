"""The k largest pre-activations of each token, exactly, without storing pre-activations.

The first few latents give each token a threshold that k of its values are known to reach. All
latents then stream by in stages; what reaches the threshold is kept as a candidate, and after
each stage the threshold is raised to the k-th largest candidate. A row whose candidates do not
fit, or that holds too many equal values, is redone from its stored pre-activations.

Few latents, or a k that is not small against them, are multiplied densely in tiles of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.kernels.gpu.candidates import Candidates, sort_width
from scaling.kernels.gpu.products import Products
from scaling.kernels.gpu.tuning import Tuning, next_power_of_2
from scaling.kernels.interface import Active
from scaling.kernels.torch_sparse import topk_lowest_id

GROUPS_PER_K = 4
"""Groups of latents whose maxima seed the threshold, in units of k: with four times as many
groups as winners, few groups hold two."""
REGISTER_LATENTS = 16384
"""Widest row of pre-activations that one program of the selection holds."""

ROW_ALIGNMENT = 64


class Plan(NamedTuple):
    """How the latents of one problem stream by."""

    seed_columns: int
    maxima_per_tile: int
    capacity: int
    stages: list[range]


def plan(n_latents: int, k: int, tuning: Tuning) -> Plan | None:
    """None = multiply densely."""
    block = tuning.block_latents
    n_groups = next_power_of_2(GROUPS_PER_K * k)
    wanted = max(n_latents // tuning.seed_divisor, 4 * n_groups, block)
    seed_tiles = -(-wanted // block)
    seed_columns = seed_tiles * block
    if n_latents < tuning.streaming_from or 4 * seed_columns > n_latents:
        return None
    per_tile = min(block // 2, next_power_of_2(-(-n_groups // seed_tiles)))
    capacity = next_power_of_2(max(128, tuning.capacity_factor * k))
    stages, start, end = [], 0, (1 + tuning.growth) * seed_columns
    while start < n_latents:
        # A last stage of a sliver would cost a launch and a selection for nothing.
        end = n_latents if end * 5 > n_latents * 4 else end
        stages.append(range(start, end))
        start, end = end, (1 + tuning.growth) * end
    return Plan(seed_columns, per_tile, capacity, stages)


class Encoder:
    """Exact TopK of products of operands of one dtype, accumulated in float32."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.redone_rows = 0
        """Rows redone from stored pre-activations, since this object was made."""

    def topk(self, x_BD: Tensor, w_ND: Tensor, b_enc_N: Tensor, k: int) -> Active:
        """The k largest of x w^T + b_enc, ordered by value, then id; x and w of one dtype.

        Returns values_BK float32 and indices_BK int64.
        """
        if not x_BD.numel():
            return _empty(x_BD, k)
        layout = plan(len(w_ND), k, self.tuning)
        width = sort_width(k) if layout is None else layout.capacity
        row_bytes = 8 * width if layout else 8 * width + 4 * len(w_ND)
        chunks = []
        for x_TD in x_BD.split(max(1, self.tuning.tile_bytes // row_bytes)):
            if layout is None:
                chunks.append(self._dense(x_TD, w_ND, b_enc_N, k))
            else:
                chunks.append(self._streamed(Products(x_TD, w_ND, b_enc_N, self.tuning), k, layout))
        return joined(chunks)

    def _streamed(self, products: Products, k: int, layout: Plan) -> Active:
        candidates = Candidates(
            products.b_enc_N, len(products.x_BD), k, layout.capacity, self.tuning
        )
        candidates.seed(products.group_maxima(layout.seed_columns, layout.maxima_per_tile))
        for columns in layout.stages:
            products.append_survivors(
                candidates.thresholds_B, candidates.entries_BC, candidates.counts_B, columns
            )
            candidates.renew(exact=columns is layout.stages[-1])
        found = candidates.sorted()
        self._redo(found, candidates.unsure_B, products, k)
        return found

    def _dense(self, x_BD: Tensor, w_ND: Tensor, b_enc_N: Tensor, k: int) -> Active:
        n_latents = len(w_ND)
        products_BN = dense_products(x_BD, aligned_rows(w_ND).T)
        if n_latents > REGISTER_LATENTS or 2 * sort_width(k) > n_latents:
            return topk_lowest_id(products_BN[:, :n_latents].add_(b_enc_N), k)
        padding = products_BN.shape[1] - n_latents
        b_enc_N = F.pad(b_enc_N, (0, padding), value=float("-inf"))
        candidates = Candidates(b_enc_N, len(x_BD), k, sort_width(k), self.tuning)
        candidates.take_dense(products_BN, b_enc_N)
        found = candidates.sorted()
        rows = candidates.unsure_B.nonzero().flatten()
        if len(rows):
            self._replace(found, rows, products_BN[rows].add_(b_enc_N), k)
        return found

    def _redo(self, found: Active, unsure_B: Tensor, products: Products, k: int) -> None:
        unsure = unsure_B.nonzero().flatten()
        for rows in unsure.split(max(1, self.tuning.tile_bytes // (4 * len(products.w_ND)))):
            if len(rows):
                pre_RN = dense_products(products.x_BD[rows], products.w_ND.T)
                self._replace(found, rows, pre_RN.add_(products.b_enc_N), k)

    def _replace(self, found: Active, rows: Tensor, pre_RN: Tensor, k: int) -> None:
        exact = topk_lowest_id(pre_RN, k)
        found.values_BK[rows] = exact.values_BK
        found.indices_BK[rows] = exact.indices_BK
        self.redone_rows += len(rows)


def dense_products(a_BD: Tensor, b_DN: Tensor) -> Tensor:
    """a @ b accumulated and returned in float32, whatever the (one) dtype of the operands."""
    if a_BD.dtype == torch.float32:
        return a_BD @ b_DN
    if a_BD.is_cuda:
        return torch.mm(a_BD, b_DN, out_dtype=torch.float32)
    return a_BD.float() @ b_DN.float()


def aligned_rows(w_ND: Tensor) -> Tensor:
    """w with rows of zeros added: products whose width is not a multiple of 8 are slow."""
    return F.pad(w_ND, (0, 0, 0, -len(w_ND) % ROW_ALIGNMENT))


def joined(chunks: list[Active]) -> Active:
    if len(chunks) == 1:
        return chunks[0]
    values, indices = zip(*chunks, strict=True)
    return Active(torch.cat(values), torch.cat(indices))


def token_chunks(n_tokens: int, row_bytes: int, tuning: Tuning) -> Iterator[slice]:
    """Consecutive tokens, so many that a temporary tensor of `row_bytes` each stays bounded."""
    step = max(1, tuning.tile_bytes // row_bytes)
    for start in range(0, n_tokens, step):
        yield slice(start, min(n_tokens, start + step))


def _empty(x_BD: Tensor, k: int) -> Active:
    shape = (len(x_BD), k)
    return Active(
        x_BD.new_zeros(shape, dtype=torch.float32), x_BD.new_zeros(shape, dtype=torch.int64)
    )
