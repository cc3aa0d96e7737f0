"""What belongs to a token: its sum of decoder rows, its residual, the gradients of its values.

One program for each token. The rows of its latents are read once, some columns at a time: the
columns' reconstruction, their residual and their part of every dot product come from one read.

Shape suffixes: B tokens, D d_model, N latents, K active latents per token.
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

from scaling.kernels.fused import TokenPass
from scaling.kernels.gpu.tuning import Tuning, next_power_of_2
from scaling.kernels.interface import Active


@triton.jit
def _token_kernel(
    x_BD: tl.tensor,
    values_BK: tl.tensor,
    indices_BK: tl.tensor,
    w_ND: tl.tensor,
    out_BD: tl.tensor,
    grads_BK: tl.tensor,
    squares_B: tl.tensor,
    scale: tl.tensor,
    k: tl.tensor,
    D: tl.constexpr,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DECODE: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """DECODE alone: out = sum of value * row. DOT alone: grads = scale * <x, row>.

    Both: out = x - sum of value * row, grads = scale * <out, row> where value > 0, else 0, and
    squares = the sum of squares of out.
    """
    token = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    present = slots < k
    ids = tl.load(indices_BK + token * k + slots, present, 0)
    if DECODE:
        values = tl.load(values_BK + token * k + slots, present, 0.0)
        # Rows of shut latents weigh nothing: they need not be read.
        wanted = present & ((values > 0.0) if DOT else present)
    else:
        wanted = present
    dots = tl.zeros((SLOTS,), tl.float32)
    square = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, D, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < D
        places = w_ND + ids[:, None] * D + columns[None, :]
        rows = tl.load(places, wanted[:, None] & inside[None, :], 0.0).to(tl.float32)
        if DOT:
            target = tl.load(x_BD + token * D + columns, inside, 0.0)
        if DECODE:
            recon = tl.sum(rows * values[:, None], axis=0)
            if DOT:
                target -= recon
                square += target * target
                recon = target
            tl.store(out_BD + token * D + columns, recon, mask=inside)
        if DOT:
            dots += tl.sum(rows * target[None, :], axis=1)
    if DOT:
        tl.store(grads_BK + token * k + slots, dots * scale, mask=present)
    if DECODE and DOT:
        tl.store(squares_B + token, tl.sum(square))


def token_pass(
    centered_BD: Tensor, active: Active, w_ND: Tensor, scale: float, tuning: Tuning
) -> TokenPass:
    """See `FusedKernels.token_pass`; w may be of a lower precision, the rest is float32."""
    residual_BD = torch.empty_like(centered_BD)
    grads_BK = torch.empty_like(active.values_BK)
    squares_B = centered_BD.new_empty(len(centered_BD))
    _launch(centered_BD, active, w_ND, residual_BD, grads_BK, squares_B, scale, tuning)
    return TokenPass(residual_BD, grads_BK, squares_B.sum())


def token_rows(pairs: Active, w_ND: Tensor, tuning: Tuning) -> Tensor:
    """See `Primitives.token_rows`; [B, D] float32."""
    n_tokens = len(pairs.values_BK)
    out_BD = pairs.values_BK.new_empty(n_tokens, w_ND.shape[1], dtype=torch.float32)
    _launch(None, pairs, w_ND, out_BD, None, None, 1.0, tuning)
    return out_BD


def dot_products(x_BD: Tensor, w_ND: Tensor, indices_BK: Tensor, tuning: Tuning) -> Tensor:
    """See `Primitives.dot_products`; [B, K] float32."""
    grads_BK = x_BD.new_empty(indices_BK.shape, dtype=torch.float32)
    _launch(x_BD, Active(grads_BK, indices_BK), w_ND, None, grads_BK, None, 1.0, tuning)
    return grads_BK


def _launch(
    x_BD: Tensor | None,
    pairs: Active,
    w_ND: Tensor,
    out_BD: Tensor | None,
    grads_BK: Tensor | None,
    squares_B: Tensor | None,
    scale: float,
    tuning: Tuning,
) -> None:
    n_tokens, k = pairs.indices_BK.shape
    if not n_tokens:
        return
    unused = pairs.values_BK
    slots, d_model = next_power_of_2(k), w_ND.shape[1]
    columns = min(next_power_of_2(d_model), tuning.token_columns)
    columns = min(columns, max(32, tuning.gather_values // slots))
    _token_kernel[(n_tokens,)](
        unused if x_BD is None else x_BD.contiguous(),
        pairs.values_BK.contiguous(),
        pairs.indices_BK.contiguous(),
        w_ND,
        unused if out_BD is None else out_BD,
        unused if grads_BK is None else grads_BK,
        unused if squares_B is None else squares_B,
        scale,
        k,
        D=d_model,
        SLOTS=slots,
        COLUMNS=columns,
        DECODE=out_BD is not None,
        DOT=grads_BK is not None,
        num_warps=min(16, max(1, slots * columns // tuning.gather_values)),
    )
