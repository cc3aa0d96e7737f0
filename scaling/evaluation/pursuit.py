"""Sparse codes of vectors over a given dictionary, found greedily: the best that is cheap to find.

OMP (orthogonal matching pursuit; Pati et al. 1993, Mallat & Zhang 1993), for each vector x:

    repeat k times:  i = argmax |<r, w_i>| over unit rows w_i not chosen yet
                     z = the least squares magnitudes of the rows chosen;  r = x - W_chosen^T z

Gradient pursuit (Blumensath & Davies 2008) takes one gradient step in place of the least squares:

    g = W_chosen r,  z += (|g|^2 / |W_chosen^T g|^2) g

With `positive` a row is chosen for its largest <r, w_i>, and magnitudes stay at 0 or above, as an
encoder's are (the gradient is projected, and so is z).

Shapes: B vectors, D = d_model, N rows, K chosen rows of the vector that is given most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FLOATS_AT_ONCE = 2**24
"""Of correlations with all rows, and of chosen rows, in memory: 64 MiB each."""
IN_SPAN = 1e-6
"""A unit row is of the span of the others where less than this is left of its length."""


class Coded(NamedTuple):
    """Rows and magnitudes of each vector; places beyond a vector's count hold 0."""

    ids_BK: Tensor
    """int64."""
    values_BK: Tensor
    """Of the rows as they were given, whatever their norm."""
    errors_B: Tensor
    """Squared, float64."""


def omp(x_BD: Tensor, rows_ND: Tensor, counts_B: Tensor) -> Coded:
    """Codes with `counts_B` rows for each vector, by orthogonal matching pursuit.

    x: float [B, D]; rows: float [N, D]; counts: int64 [B], each at most N.
    """
    return _in_chunks(_omp_chunk, x_BD, rows_ND, counts_B)


def gradient_pursuit(
    x_BD: Tensor, rows_ND: Tensor, counts_B: Tensor, *, positive: bool = False
) -> Coded:
    """Codes with at most `counts_B` rows for each vector, by gradient pursuit; see `omp`."""

    def chunk(x_BD: Tensor, unit_ND: Tensor, counts_B: Tensor) -> Coded:
        return _pursuit_chunk(x_BD, unit_ND, counts_B, positive)

    return _in_chunks(chunk, x_BD, rows_ND, counts_B)


_Chunk = Callable[[Tensor, Tensor, Tensor], Coded]
"""Of vectors in the order of falling counts, over unit rows."""


@torch.no_grad()
def _in_chunks(code: _Chunk, x_BD: Tensor, rows_ND: Tensor, counts_B: Tensor) -> Coded:
    """Vectors that are given as many rows go together, so that none waits for another."""
    if int(counts_B.max()) > len(rows_ND):
        raise ValueError(f"{int(counts_B.max())} rows of {len(rows_ND)}")
    norms_N = rows_ND.norm(dim=1)
    unit_ND = rows_ND / norms_N.clamp_min(torch.finfo(rows_ND.dtype).tiny).unsqueeze(1)
    width = max(1, int(counts_B.max()))
    ids_BK = torch.zeros(len(x_BD), width, dtype=torch.int64, device=x_BD.device)
    values_BK = x_BD.new_zeros(len(x_BD), width)
    errors_B = torch.zeros(len(x_BD), dtype=torch.float64, device=x_BD.device)
    for members in counts_B.argsort(descending=True, stable=True).split(_chunk_size(x_BD, unit_ND)):
        part = code(x_BD[members], unit_ND, counts_B[members])
        k = part.ids_BK.shape[1]
        ids_BK[members, :k] = part.ids_BK
        # A row of zeros is chosen only where no other is left, at the magnitude 0.
        values_BK[members, :k] = (part.values_BK / norms_N[part.ids_BK]).nan_to_num(0, 0, 0)
        errors_B[members] = part.errors_B
    return Coded(ids_BK, values_BK, errors_B)


def _chunk_size(x_BD: Tensor, unit_ND: Tensor) -> int:
    return max(32, min(512, FLOATS_AT_ONCE // max(1, len(unit_ND))))


def _omp_chunk(x_BD: Tensor, unit_ND: Tensor, counts_B: Tensor) -> Coded:
    """By Gram-Schmidt: with the rows chosen = R^T Q, the residual loses its part along each new
    direction, and z = R^-1 Q x at the end."""
    width = max(1, int(counts_B.max()))
    ids_BK = torch.zeros(len(x_BD), width, dtype=torch.int64, device=x_BD.device)
    q_BKD = x_BD.new_zeros(len(x_BD), width, x_BD.shape[1])
    r_BKK = torch.eye(width, dtype=x_BD.dtype, device=x_BD.device).repeat(len(x_BD), 1, 1)
    along_BK = x_BD.new_zeros(len(x_BD), width)
    residual_BD = x_BD.clone()
    for step in range(int(counts_B.max())):
        live = int((counts_B > step).sum())
        score_BN = (residual_BD[:live] @ unit_ND.T).abs_()
        ids_BK[:live, step] = _best(score_BN, ids_BK[:live, :step])
        direction_BD, parts_BK, length_B = _orthogonal(
            unit_ND[ids_BK[:live, step]], q_BKD[:live, :step]
        )
        q_BKD[:live, step] = direction_BD
        r_BKK[:live, :step, step] = parts_BK
        r_BKK[:live, step, step] = length_B
        along_BK[:live, step] = (residual_BD[:live] * direction_BD).sum(dim=1)
        residual_BD[:live] -= along_BK[:live, step, None] * direction_BD
    values_BK = torch.linalg.solve_triangular(r_BKK, along_BK.unsqueeze(2), upper=True).squeeze(2)
    return Coded(ids_BK, values_BK, residual_BD.double().square().sum(dim=1))


def _orthogonal(row_BD: Tensor, q_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is new in a row, of length 1 (or 0: nothing is), its parts along q, and its length (1
    where nothing is new, which keeps the triangle solvable). Twice, since once leaves rounding."""
    parts_BS = row_BD.new_zeros(q_BSD.shape[:2])
    for _ in range(2):
        more_BS = torch.bmm(q_BSD, row_BD.unsqueeze(2)).squeeze(2)
        row_BD = row_BD - torch.bmm(more_BS.unsqueeze(1), q_BSD).squeeze(1)
        parts_BS = parts_BS + more_BS
    length_B = row_BD.norm(dim=1)
    is_new_B = length_B > IN_SPAN
    direction_BD = torch.where(is_new_B[:, None], row_BD / length_B[:, None], 0)
    return direction_BD, parts_BS, torch.where(is_new_B, length_B, 1)


def _pursuit_chunk(x_BD: Tensor, unit_ND: Tensor, counts_B: Tensor, positive: bool) -> Coded:
    width = max(1, int(counts_B.max()))
    ids_BK = torch.zeros(len(x_BD), width, dtype=torch.int64, device=x_BD.device)
    rows_BKD = x_BD.new_zeros(len(x_BD), width, x_BD.shape[1])
    values_BK = x_BD.new_zeros(len(x_BD), width)
    residual_BD = x_BD.clone()
    for step in range(int(counts_B.max())):
        live, upto = int((counts_B > step).sum()), step + 1
        score_BN = residual_BD[:live] @ unit_ND.T
        ids_BK[:live, step] = _best(score_BN if positive else score_BN.abs_(), ids_BK[:live, :step])
        rows_BKD[:live, step] = unit_ND[ids_BK[:live, step]]
        rows_BSD, values_BS = rows_BKD[:live, :upto], values_BK[:live, :upto]
        values_BS = _stepped(rows_BSD, values_BS, residual_BD[:live], positive)
        values_BK[:live, :upto] = values_BS
        residual_BD[:live] = x_BD[:live] - torch.bmm(values_BS.unsqueeze(1), rows_BSD).squeeze(1)
    return Coded(ids_BK, values_BK, residual_BD.double().square().sum(dim=1))


def _stepped(rows_BSD: Tensor, values_BS: Tensor, residual_BD: Tensor, positive: bool) -> Tensor:
    """Magnitudes after one gradient step of the length that lowers the error most."""
    gradient_BS = torch.bmm(rows_BSD, residual_BD.unsqueeze(2)).squeeze(2)
    if positive:
        gradient_BS = torch.where((values_BS > 0) | (gradient_BS > 0), gradient_BS, 0)
    change_BD = torch.bmm(gradient_BS.unsqueeze(1), rows_BSD).squeeze(1)
    floor = torch.finfo(change_BD.dtype).tiny
    length_B = gradient_BS.square().sum(dim=1) / change_BD.square().sum(dim=1).clamp_min(floor)
    values_BS = values_BS + length_B[:, None] * gradient_BS
    return values_BS.clamp_min(0) if positive else values_BS


def _best(score_BN: Tensor, taken_BS: Tensor) -> Tensor:
    """The row of the highest score that is not taken, [B]; the first of equals."""
    return score_BN.scatter_(1, taken_BS, -torch.inf).argmax(dim=1)
