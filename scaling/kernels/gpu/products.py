"""Encoder products, tile by tile: what leaves a tile are maxima or survivors, never the tile.

Shape suffixes: B tokens, D d_model, N latents, G groups of latents, C slots for candidates.
"""

# Inside a kernel nothing has the type that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from scaling.kernels.gpu.tuning import Tuning


@triton.jit
def _product_tile(
    x: tl.tensor,
    w: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    n_tokens: tl.tensor,
    n_latents: tl.tensor,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    NATIVE: tl.constexpr,
) -> tl.tensor:
    """x[row : row + ROWS] @ w[column : column + COLUMNS].T, accumulated in float32."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    if DESCRIPTORS:
        for start in range(0, D, DEPTH):
            total = tl.dot(x.load([row, start]), w.load([column, start]).T, total)
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        x_rows = x + rows.to(tl.int64)[:, None] * D
        w_rows = w + columns.to(tl.int64)[:, None] * D
        for start in range(0, D, DEPTH):
            depth = start + tl.arange(0, DEPTH)
            inside = (depth < D)[None, :]
            x_part = tl.load(x_rows + depth[None, :], inside & (rows < n_tokens)[:, None], 0.0)
            w_part = tl.load(w_rows + depth[None, :], inside & (columns < n_latents)[:, None], 0.0)
            if not NATIVE:
                # The interpreter multiplies the bits of bf16 as integers.
                x_part, w_part = x_part.to(tl.float32), w_part.to(tl.float32)
            total = tl.dot(x_part, tl.trans(w_part), total, input_precision="ieee")
    return total


@triton.jit
def _exceeds(values: tl.tensor, below: tl.tensor, NATIVE: tl.constexpr) -> tl.tensor:
    """1.0 where a value is larger than `below`, else 0.0 (also for NaN).

    2^100 times the difference of two floats is larger than 1 if it is not 0. A multiply-add that
    saturates has twice the rate of a comparison, and this is done to every pre-activation.
    """
    if NATIVE:
        scaled = below * -1.2676506002282294e30
        return tl.inline_asm_elementwise(
            "fma.rn.sat.f32 $0, $1, 0f71800000, $2;",
            "=f,f,f",
            [values, scaled],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return (values > below).to(tl.float32)


@triton.jit
def _pick(stacked: tl.tensor, upper: tl.tensor) -> tl.tensor:
    """Upper or lower half of the layers of every stack; a choice between two registers."""
    ROWS: tl.constexpr = stacked.shape[0]
    HALF: tl.constexpr = stacked.shape[1] // 2
    halves = tl.reshape(stacked, (ROWS, 2, HALF, stacked.shape[2]))
    low, high = tl.split(tl.permute(halves, (0, 2, 3, 1)))
    return tl.where(upper[:, None, :], high, low)


@triton.jit
def _append_survivors(
    values: tl.tensor,
    rows: tl.tensor,
    column: tl.tensor,
    below: tl.tensor,
    outputs: tl.tensor,
    CAPACITY: tl.constexpr,
    NATIVE: tl.constexpr,
) -> None:
    """Every value that exceeds its row's `below` goes to that row's next free slot.

    Columns are stacked 16 high in the registers of one thread, and each stack is boiled down to
    16 bits that say who survives and a count of them. Each round then appends one survivor of
    every stack that has one: survivors are few, and so are rounds. The order of the slots is that
    of chance; the selection sorts.
    """
    entries_BC, counts_B = outputs
    WIDTH: tl.constexpr = values.shape[1] // 16
    stacked = tl.reshape(values, (values.shape[0], 16, WIDTH))
    # Layer l adds 2^l, and 2^16 to the count: at most 2^21, exact in float32.
    weights = ((1 << tl.arange(0, 16)) + 65536).to(tl.float32)[None, :, None]
    flags = _exceeds(stacked, below[:, None, None], NATIVE)
    summary = tl.sum(flags * weights, axis=1).to(tl.int32)
    n_rounds = tl.max(tl.max(summary >> 16, axis=1), axis=0)
    row_entries = entries_BC + rows.to(tl.int64)[:, None] * CAPACITY
    counters = counts_B + rows[:, None] + tl.zeros_like(summary)
    columns = column + tl.arange(0, WIDTH)[None, :]
    left = summary & 65535
    for _ in range(n_rounds):
        lowest = left & -left
        slots = tl.atomic_add(counters, 1, mask=left != 0, sem="relaxed")
        bit3, bit2 = (lowest & 0xFF00) != 0, (lowest & 0xF0F0) != 0
        bit1, bit0 = (lowest & 0xCCCC) != 0, (lowest & 0xAAAA) != 0
        value = _pick(_pick(_pick(_pick(stacked, bit3), bit2), bit1), bit0)
        value = tl.reshape(value, (summary.shape[0], WIDTH))
        layer = bit0.to(tl.int32) + bit1.to(tl.int32) * 2
        layer += bit2.to(tl.int32) * 4 + bit3.to(tl.int32) * 8
        entries = value.to(tl.int32, bitcast=True).to(tl.int64) << 32
        entries |= columns + layer * WIDTH
        tl.store(row_entries + slots, entries, mask=(left != 0) & (slots < CAPACITY))
        left -= lowest


@triton.jit
def _tile_origin(
    tile: tl.tensor, n_row_tiles: tl.tensor, n_column_tiles: tl.tensor, GROUP: tl.constexpr
) -> tl.tensor:
    """Row and column tile number; GROUP row tiles go through all columns together."""
    per_group = GROUP * n_column_tiles
    first = (tile // per_group) * GROUP
    height = min(n_row_tiles - first, GROUP)
    within = tile % per_group
    return first + within % height, within // height


@triton.jit
def _products_kernel(
    x: tl.tensor,
    w: tl.tensor,
    b_enc_N: tl.tensor,
    thresholds_B: tl.tensor,
    outputs: tl.tensor,
    n_tokens: tl.tensor,
    n_latents: tl.tensor,
    first_column: tl.tensor,
    n_column_tiles: tl.tensor,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    MAXIMA: tl.constexpr,
    CAPACITY: tl.constexpr,
    NATIVE: tl.constexpr,
) -> None:
    """MAXIMA > 0: that many group maxima for each row and tile; else: survivors are appended."""
    n_row_tiles = tl.cdiv(n_tokens, ROWS)
    row_tile, column_tile = _tile_origin(tl.program_id(0), n_row_tiles, n_column_tiles, GROUP)
    row, column = row_tile * ROWS, first_column + column_tile * COLUMNS
    total = _product_tile(
        x, w, row, column, n_tokens, n_latents, D, ROWS, COLUMNS, DEPTH, DESCRIPTORS, NATIVE
    )
    rows = row + tl.arange(0, ROWS)
    columns = column + tl.arange(0, COLUMNS)
    # Columns past the end are minus infinity: never a maximum, never a survivor.
    total += tl.load(b_enc_N + columns, columns < n_latents, float("-inf"))[None, :]
    if MAXIMA:
        groups = tl.reshape(total, (ROWS, COLUMNS // MAXIMA, MAXIMA))
        places = column_tile * MAXIMA + tl.arange(0, MAXIMA)
        offsets = rows[:, None] * (n_column_tiles * MAXIMA) + places[None, :]
        tl.store(outputs + offsets, tl.max(groups, axis=1), mask=(rows < n_tokens)[:, None])
    else:
        thresholds = tl.load(thresholds_B + rows, rows < n_tokens, float("inf"))
        _append_survivors(total, rows, column, thresholds, outputs, CAPACITY, NATIVE)


class Products:
    """The encoder's products of one chunk of tokens, from operands of one dtype."""

    def __init__(self, x_BD: Tensor, w_ND: Tensor, b_enc_N: Tensor, tuning: Tuning) -> None:
        self.x_BD, self.w_ND, self.b_enc_N = x_BD, w_ND, b_enc_N
        self.tuning = tuning
        # The accelerator wants rows that start at multiples of 16 bytes.
        self.descriptors = tuning.descriptors and x_BD.shape[1] * x_BD.element_size() % 16 == 0

    def group_maxima(self, n_columns: int, per_tile: int) -> Tensor:
        """Maxima of disjoint groups of the first latents, [B, G] float32."""
        n_tiles = n_columns // self.tuning.block_latents
        maxima_BG = self.b_enc_N.new_empty(len(self.x_BD), n_tiles * per_tile)
        self._launch(None, maxima_BG, 0, n_tiles, maxima=per_tile, capacity=1)
        return maxima_BG

    def append_survivors(
        self, thresholds_B: Tensor, entries_BC: Tensor, counts_B: Tensor, columns: range
    ) -> None:
        """Append (value bits, id) of every value in `columns` that reaches its row's threshold.

        `counts_B` goes on counting when a row's slots are full.
        """
        n_tiles = triton.cdiv(len(columns), self.tuning.block_latents)
        outputs = (entries_BC, counts_B)
        capacity = entries_BC.shape[1]
        self._launch(thresholds_B, outputs, columns.start, n_tiles, maxima=0, capacity=capacity)

    def _launch(
        self,
        thresholds_B: Tensor | None,
        outputs: Any,
        first_column: int,
        n_column_tiles: int,
        *,
        maxima: int,
        capacity: int,
    ) -> None:
        tuning, (n_tokens, d_model) = self.tuning, self.x_BD.shape
        n_tiles = triton.cdiv(n_tokens, tuning.block_tokens) * n_column_tiles
        x, w = self._operands()
        _products_kernel[(n_tiles,)](
            x,
            w,
            self.b_enc_N,
            self.b_enc_N if thresholds_B is None else thresholds_B,
            outputs,
            n_tokens,
            len(self.w_ND),
            first_column,
            n_column_tiles,
            D=d_model,
            ROWS=tuning.block_tokens,
            COLUMNS=tuning.block_latents,
            DEPTH=tuning.block_d,
            GROUP=tuning.group_tokens,
            DESCRIPTORS=self.descriptors,
            MAXIMA=maxima,
            CAPACITY=capacity,
            NATIVE=self.x_BD.is_cuda,
            num_warps=tuning.matmul_warps,
            num_stages=tuning.matmul_stages,
        )

    def _operands(self) -> tuple[Any, Any]:
        if not self.descriptors:
            return self.x_BD, self.w_ND
        tuning = self.tuning
        return (
            TensorDescriptor.from_tensor(self.x_BD, [tuning.block_tokens, tuning.block_d]),
            TensorDescriptor.from_tensor(self.w_ND, [tuning.block_latents, tuning.block_d]),
        )
