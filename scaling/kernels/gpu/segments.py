"""What belongs to a latent: sums over the (token, slot) pairs that chose it.

The pairs are sorted by latent once, stably, so that a latent's pairs are a range and always
stand in the same order: no atomics, the same bits on every run. A latent with very many pairs is
cut into pieces of fixed length whose sums are added up in order.

Shape suffixes: B tokens, D d_model, N latents, K active, P pairs = B * K, S cut pieces.
"""

# Inside a kernel nothing has the type that Python sees.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from scaling.kernels.gpu.tuning import Tuning, next_power_of_2

MAX_PIECES = 2**14
"""Pieces get longer rather than more numerous."""
SUM_BLOCK = 128
"""Weights added up at a time by `latent_sums`."""


class Segments(NamedTuple):
    """The pairs in the order of their latents."""

    order_P: Tensor
    """Position (token * K + slot) of each pair, int64."""
    tokens_P: Tensor
    """Token of each pair, int32."""
    starts_N: Tensor
    """[N + 1]: latent n has the pairs starts[n] : starts[n + 1], int32."""
    piece_starts_N: Tensor
    """[N + 1]: and, if it is cut, the pieces piece_starts[n] : piece_starts[n + 1], int32."""
    piece: int
    """Pairs in a piece; a latent with more than these is cut."""
    max_pieces: int


def sort_by_latent(indices_BK: Tensor, n_latents: int, tuning: Tuning) -> Segments:
    """Sort the pairs of ids [B, K] by latent."""
    n_pairs, k = indices_BK.numel(), indices_BK.shape[1]
    ids_P, order_P = torch.sort(indices_BK.flatten().to(torch.int32), stable=True)
    bounds = torch.arange(n_latents + 1, dtype=torch.int32, device=ids_P.device)
    starts_N = torch.searchsorted(ids_P, bounds, out_int32=True)
    piece = max(tuning.segment, next_power_of_2(2 * n_pairs // MAX_PIECES))
    lengths_N = starts_N.diff()
    pieces_N = torch.where(lengths_N > piece, (lengths_N + piece - 1) // piece, 0)
    piece_starts_N = F.pad(pieces_N.cumsum(0), (1, 0)).to(torch.int32)
    tokens_P = torch.div(order_P, k, rounding_mode="floor").to(torch.int32)
    # A cut latent has more than one piece's pairs, so its pieces are more than half full.
    return Segments(order_P, tokens_P, starts_N, piece_starts_N, piece, 2 * n_pairs // piece)


@triton.jit
def sum_rows(
    first: tl.tensor,
    end: tl.tensor,
    tokens_P: tl.tensor,
    weights_P: tl.tensor,
    rows_BD: tl.tensor,
    columns: tl.tensor,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
) -> tl.tensor:
    """Sum of weight * row over the pairs first : end, [WIDTH] float32."""
    total = tl.zeros((WIDTH,), tl.float32)
    for start in range(first, end, PAIRS):
        pairs = start + tl.arange(0, PAIRS)
        tokens = tl.load(tokens_P + pairs, pairs < end, 0)
        weights = tl.load(weights_P + pairs, pairs < end, 0.0)
        places = rows_BD + tokens.to(tl.int64)[:, None] * D + columns[None, :]
        rows = tl.load(places, (pairs < end)[:, None] & (columns < D)[None, :], 0.0)
        total += tl.sum(rows.to(tl.float32) * weights[:, None], axis=0)
    return total


@triton.jit
def sum_pieces(
    first: tl.tensor, end: tl.tensor, pieces_SD: tl.tensor, columns: tl.tensor, D: tl.constexpr
) -> tl.tensor:
    """Sum of the pieces first : end, one after the other."""
    total = tl.zeros_like(columns).to(tl.float32)
    places = pieces_SD + first.to(tl.int64) * D + columns
    for _ in range(first, end):
        total += tl.load(places, columns < D, 0.0)
        places += D
    return total


@triton.jit
def latent_row(
    latent: tl.tensor,
    segments: tl.tensor,
    weights_P: tl.tensor,
    rows_BD: tl.tensor,
    pieces_SD: tl.tensor,
    columns: tl.tensor,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
) -> tl.tensor:
    """The whole sum of one latent, from its pieces if it was cut."""
    tokens_P, starts_N, piece_starts_N = segments
    first_piece = tl.load(piece_starts_N + latent)
    end_piece = tl.load(piece_starts_N + latent + 1)
    first, end = tl.load(starts_N + latent), tl.load(starts_N + latent + 1)
    # A latent that was cut has nothing left to sum here; the others have no pieces.
    end = tl.where(end_piece > first_piece, first, end)
    total = sum_pieces(first_piece, end_piece, pieces_SD, columns, D)
    total += sum_rows(first, end, tokens_P, weights_P, rows_BD, columns, D, WIDTH, PAIRS)
    return total


@triton.jit
def _pieces_kernel(
    segments: tl.tensor,
    latent_S: tl.tensor,
    weights_P: tl.tensor,
    rows_BD: tl.tensor,
    pieces_SD: tl.tensor,
    n_latents: tl.tensor,
    length: tl.tensor,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
) -> None:
    """One program for each piece: its sum."""
    piece = tl.program_id(0)
    latent = tl.load(latent_S + piece)
    if latent < n_latents:
        tokens_P, starts_N, piece_starts_N = segments
        first = tl.load(starts_N + latent)
        end = tl.load(starts_N + latent + 1)
        first += (piece - tl.load(piece_starts_N + latent)) * length
        end = tl.minimum(end, first + length)
        columns = tl.arange(0, WIDTH)
        total = sum_rows(first, end, tokens_P, weights_P, rows_BD, columns, D, WIDTH, PAIRS)
        tl.store(pieces_SD + piece.to(tl.int64) * D + columns, total, mask=columns < D)


@triton.jit
def _rows_kernel(
    segments: tl.tensor,
    weights_P: tl.tensor,
    rows_BD: tl.tensor,
    pieces_SD: tl.tensor,
    out_ND: tl.tensor,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
) -> None:
    """One program for each latent: its sum, stored."""
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    total = latent_row(latent, segments, weights_P, rows_BD, pieces_SD, columns, D, WIDTH, PAIRS)
    tl.store(out_ND + latent * D + columns, total, mask=columns < D)


@triton.jit
def _weights_kernel(
    starts_N: tl.tensor, weights_P: tl.tensor, out_N: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """One program for each latent: the sum of its weights."""
    latent = tl.program_id(0)
    end = tl.load(starts_N + latent + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.load(starts_N + latent), end, BLOCK):
        pairs = start + tl.arange(0, BLOCK)
        total += tl.load(weights_P + pairs, pairs < end, 0.0)
    tl.store(out_N + latent, tl.sum(total))


class RowBlocks(NamedTuple):
    """Launch constants of the kernels above, for one d_model."""

    D: int
    WIDTH: int
    PAIRS: int
    num_warps: int


def row_blocks(d_model: int, tuning: Tuning) -> RowBlocks:
    width = next_power_of_2(d_model)
    return RowBlocks(d_model, width, max(1, tuning.pair_values // width), max(1, width // 256))


def cut_pieces(segments: Segments, weights_P: Tensor, rows_BD: Tensor, tuning: Tuning) -> Tensor:
    """Sums of the pieces of all latents that are cut, [S, D] float32."""
    d_model, n_pieces = rows_BD.shape[1], segments.max_pieces
    pieces_SD = weights_P.new_empty(max(1, n_pieces), d_model)
    if n_pieces:
        numbers = torch.arange(n_pieces, dtype=torch.int32, device=rows_BD.device)
        latent_S = torch.searchsorted(segments.piece_starts_N[1:], numbers, right=True)
        _pieces_kernel[(n_pieces,)](
            pointers(segments),
            latent_S,
            weights_P,
            rows_BD,
            pieces_SD,
            len(segments.starts_N) - 1,
            segments.piece,
            **row_blocks(d_model, tuning)._asdict(),
        )
    return pieces_SD


def pointers(segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
    """What `latent_row` reads of the segments."""
    return segments.tokens_P, segments.starts_N, segments.piece_starts_N


def latent_rows(segments: Segments, weights_BK: Tensor, rows_BD: Tensor, tuning: Tuning) -> Tensor:
    """See `Primitives.latent_rows`; [N, D] float32."""
    n_latents = len(segments.starts_N) - 1
    weights_P = weights_BK.flatten()[segments.order_P]
    pieces_SD = cut_pieces(segments, weights_P, rows_BD, tuning)
    out_ND = weights_P.new_empty(n_latents, rows_BD.shape[1])
    blocks = row_blocks(rows_BD.shape[1], tuning)._asdict()
    _rows_kernel[(n_latents,)](pointers(segments), weights_P, rows_BD, pieces_SD, out_ND, **blocks)
    return out_ND


def latent_sums(segments: Segments, weights_P: Tensor) -> Tensor:
    """See `Primitives.latent_sums`, of weights already in the segments' order; [N] float32."""
    sums_N = weights_P.new_empty(len(segments.starts_N) - 1)
    _weights_kernel[(len(sums_N),)](
        segments.starts_N, weights_P, sums_N, BLOCK=SUM_BLOCK, num_warps=1
    )
    return sums_N
