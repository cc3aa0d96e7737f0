"""From the candidates of each row to its k largest, exactly.

A candidate is one int64: the bits of its float32 value above, its latent id below. Values are
compared as integers that order as the floats do, NaN largest, so that a bisection ends exactly.

Shape suffixes: B tokens, N latents, G groups of latents, C slots for candidates, K active.
"""

# Inside a kernel nothing has the type that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scaling.kernels.gpu.tuning import Tuning, next_power_of_2
from scaling.kernels.interface import Active

LOWEST = tl.constexpr(-(2**31))
EXACT = 32
"""Halvings of the 32-bit integers that leave one."""
ROUGH = 14
"""Halvings after which a threshold is close enough: the next stage only gets a few more."""


@triton.jit
def _ordered(bits: tl.tensor) -> tl.tensor:
    """int32 that compare as the floats of these bits do; zeros alike, NaNs alike and largest."""
    value = bits.to(tl.float32, bitcast=True)
    plain = tl.where(value == 0.0, 0, tl.where(value != value, 0x7FC00000, bits))
    return plain ^ ((plain >> 31) & 0x7FFFFFFF)


@triton.jit
def _kth_largest(
    ordered: tl.tensor, lowest: tl.tensor, k: tl.tensor, HALVINGS: tl.constexpr
) -> tl.tensor:
    """For each row a number that at least k entries reach, bisected HALVINGS times at most.

    ordered: [ROWS, WIDTH] int32, LOWEST where there is no entry; lowest: [ROWS] int64, a number
    that k entries are known to reach. Bisected to the end, it is the largest such number, or one
    that exactly k entries reach, which is as good.
    """
    highest = tl.max(ordered, axis=1).to(tl.int64)
    halvings = 0
    while (tl.max(highest - lowest, axis=0) > 0) & (halvings < HALVINGS):
        middle = (lowest + highest + 1) >> 1
        count = tl.sum((ordered >= middle.to(tl.int32)[:, None]).to(tl.int32), axis=1)
        lowest = tl.where(count >= k, middle, lowest)
        highest = tl.where(count > k, highest, tl.where(count == k, middle, middle - 1))
        halvings += 1
    return lowest.to(tl.int32)


@triton.jit
def _store_thresholds(
    thresholds_B: tl.tensor, rows: tl.tensor, ordered: tl.tensor, inside: tl.tensor
) -> None:
    """The float just below: what exceeds it reaches the bound.

    Kept away from 0, where neighbours are closer than the comparison can tell, and from minus
    infinity, which columns past the end would exceed. NaN becomes infinity, for the same reason.
    """
    before = ordered - 1
    bits = before ^ ((before >> 31) & 0x7FFFFFFF)
    value = bits.to(tl.float32, bitcast=True)
    value = tl.where(tl.abs(value) < 1e-20, -1e-20, value)
    value = tl.where(value != value, float("inf"), tl.maximum(value, -3.4028234663852886e38))
    tl.store(thresholds_B + rows, value, mask=inside)


@triton.jit
def _seed_kernel(
    maxima_BG: tl.tensor,
    thresholds_B: tl.tensor,
    n_tokens: tl.tensor,
    n_groups: tl.tensor,
    k: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALVINGS: tl.constexpr,
) -> None:
    """Threshold = the k-th largest group maximum: k elements of the row reach it."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    groups = tl.arange(0, WIDTH)
    inside = (rows < n_tokens)[:, None] & (groups < n_groups)[None, :]
    maxima = tl.load(maxima_BG + rows[:, None] * n_groups + groups[None, :], inside, float("-inf"))
    ordered = tl.where(inside, _ordered(maxima.to(tl.int32, bitcast=True)), LOWEST)
    lowest = tl.full((ROWS,), LOWEST, tl.int64)
    bound = _kth_largest(ordered, lowest, k, HALVINGS)
    _store_thresholds(thresholds_B, rows, bound, rows < n_tokens)


@triton.jit
def _load_candidates(
    source: tl.tensor,
    bias_N: tl.tensor,
    rows: tl.tensor,
    counts: tl.tensor,
    slots: tl.tensor,
    n_slots: tl.tensor,
    DENSE: tl.constexpr,
) -> tl.tensor:
    """Value bits (int32) and ids (int32) of what stands in the rows' slots."""
    offsets = rows.to(tl.int64)[:, None] * n_slots + slots[None, :]
    present = slots[None, :] < counts[:, None]
    if DENSE:
        bias = tl.load(bias_N + slots, slots < n_slots, 0.0)
        values = tl.load(source + offsets, present, 0.0) + bias[None, :]
        bits = values.to(tl.int32, bitcast=True)
        ids = tl.zeros_like(bits) + slots[None, :]
    else:
        entries = tl.load(source + offsets, present, 0)
        bits, ids = (entries >> 32).to(tl.int32), entries.to(tl.int32)
    return present, bits, ids


@triton.jit
def _keep_kernel(
    source: tl.tensor,
    bias_N: tl.tensor,
    entries_BC: tl.tensor,
    counts_B: tl.tensor,
    thresholds_B: tl.tensor,
    unsure_B: tl.tensor,
    n_tokens: tl.tensor,
    n_slots: tl.tensor,
    k: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CAPACITY: tl.constexpr,
    HALVINGS: tl.constexpr,
    DENSE: tl.constexpr,
) -> None:
    """Keep of each row's candidates those that reach its k-th largest, or a little less.

    source: entries [B, n_slots] with counts_B of them, or (DENSE) pre-activations [B, n_slots]
    without the bias.
    A row whose candidates did not all fit, or were fewer than k, is marked in unsure_B.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n_tokens
    slots = tl.arange(0, WIDTH)
    counts = tl.where(inside, n_slots, 0) if DENSE else tl.load(counts_B + rows, inside, 0)
    present, bits, ids = _load_candidates(
        source, bias_N, rows, tl.minimum(counts, n_slots), slots, n_slots, DENSE
    )
    ordered = tl.where(present, _ordered(bits), LOWEST)
    least = tl.min(tl.where(present, ordered, 0x7FFFFFFF), axis=1).to(tl.int64)
    bound = _kth_largest(ordered, least, k, HALVINGS)
    kept = present & (ordered >= bound[:, None])
    n_kept = tl.sum(kept.to(tl.int32), axis=1)
    places = tl.cumsum(kept.to(tl.int32), axis=1) - 1
    offsets = rows.to(tl.int64)[:, None] * CAPACITY + places
    entries = (bits.to(tl.int64) << 32) | ids.to(tl.int64)
    tl.store(entries_BC + offsets, entries, mask=kept & (places < CAPACITY))
    tl.store(counts_B + rows, n_kept, mask=inside)
    _store_thresholds(thresholds_B, rows, bound, inside)
    unsure = (counts > n_slots) | (counts < k) | (n_kept > CAPACITY)
    tl.store(unsure_B + rows, 1, mask=inside & unsure)


@triton.jit
def _sort_kernel(
    entries_BC: tl.tensor,
    counts_B: tl.tensor,
    unsure_B: tl.tensor,
    values_BK: tl.tensor,
    indices_BK: tl.tensor,
    n_tokens: tl.tensor,
    k: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CAPACITY: tl.constexpr,
) -> None:
    """The first k of each row's entries by (value descending, id ascending)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n_tokens
    slots = tl.arange(0, WIDTH)
    counts = tl.load(counts_B + rows, inside, 0)
    present, bits, ids = _load_candidates(
        entries_BC, entries_BC, rows, tl.minimum(counts, WIDTH), slots, CAPACITY, False
    )
    keys = (_ordered(bits).to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)
    keys = tl.sort(tl.where(present, keys, -(2**63)), dim=1, descending=True)
    high = (keys >> 32).to(tl.int32)
    values = (high ^ ((high >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    offsets = rows.to(tl.int64)[:, None] * k + slots[None, :]
    chosen = inside[:, None] & (slots < k)[None, :]
    tl.store(values_BK + offsets, values, mask=chosen)
    tl.store(indices_BK + offsets, 0x7FFFFFFF - (keys & 0x7FFFFFFF), mask=chosen)
    tl.store(unsure_B + rows, 1, mask=inside & (counts > WIDTH))


class Candidates:
    """The candidates of one chunk of tokens while its pre-activations stream by."""

    def __init__(self, like: Tensor, n_tokens: int, k: int, capacity: int, tuning: Tuning) -> None:
        self.k, self.n_tokens, self.tuning = k, n_tokens, tuning
        self.thresholds_B = like.new_empty(n_tokens)
        self.entries_BC = like.new_empty(n_tokens, capacity, dtype=torch.int64)
        self.counts_B = like.new_zeros(n_tokens, dtype=torch.int32)
        self.unsure_B = like.new_zeros(n_tokens, dtype=torch.int32)
        """1 where the k largest may not be what `sorted` says."""

    def seed(self, maxima_BG: Tensor) -> None:
        """First thresholds, from maxima of disjoint groups."""
        n_groups = maxima_BG.shape[1]
        grid, blocks = self._blocks(n_groups)
        arguments = (maxima_BG, self.thresholds_B, self.n_tokens, n_groups, self.k)
        _seed_kernel[grid](*arguments, HALVINGS=EXACT, **blocks)

    def renew(self, *, exact: bool) -> None:
        """Forget what cannot be among the k largest; raise the thresholds to match."""
        halvings = EXACT if exact else ROUGH
        self._keep(self.entries_BC, self.thresholds_B, dense=False, halvings=halvings)

    def take_dense(self, products_BN: Tensor, b_enc_N: Tensor) -> None:
        """All candidates at once, from stored products to which the bias is still to be added."""
        self._keep(products_BN, b_enc_N, dense=True, halvings=EXACT)

    def _keep(self, source: Tensor, bias_N: Tensor, *, dense: bool, halvings: int) -> None:
        n_slots, capacity = source.shape[1], self.entries_BC.shape[1]
        grid, blocks = self._blocks(n_slots)
        state = (self.entries_BC, self.counts_B, self.thresholds_B, self.unsure_B)
        _keep_kernel[grid](
            source,
            bias_N,
            *state,
            self.n_tokens,
            n_slots,
            self.k,
            CAPACITY=capacity,
            HALVINGS=halvings,
            DENSE=dense,
            **blocks,
        )

    def sorted(self) -> Active:
        """The k largest, once `renew` or `take_dense` was exact; not to trust where `unsure_B`."""
        values_BK = self.thresholds_B.new_empty(self.n_tokens, self.k)
        indices_BK = self.entries_BC.new_empty(self.n_tokens, self.k)
        width = min(sort_width(self.k), self.entries_BC.shape[1])
        grid, blocks = self._blocks(width)
        state = (self.entries_BC, self.counts_B, self.unsure_B, values_BK, indices_BK)
        capacity = self.entries_BC.shape[1]
        _sort_kernel[grid](*state, self.n_tokens, self.k, CAPACITY=capacity, **blocks)
        return Active(values_BK, indices_BK)

    def _blocks(self, width: int) -> tuple[tuple[int], dict[str, int]]:
        rows, padded = self.tuning.rows_per_program, next_power_of_2(width)
        warps = min(16, max(1, padded // self.tuning.warp_width))
        blocks = {"ROWS": rows, "WIDTH": padded, "num_warps": warps}
        return (triton.cdiv(self.n_tokens, rows),), blocks


def sort_width(k: int) -> int:
    """Entries sorted for each row: k, and where that is cheap more that tie with the k-th."""
    return next_power_of_2(k) * (2 if k <= 64 else 1)
