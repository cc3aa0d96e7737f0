"""Which of each token's candidates are among its k largest over all shards: exact, ties included.

Every shard offers its candidates in order of value, then id, and the shards hold ascending ranges
of ids. So the k largest (a tie goes to the lowest id) are a first part of each shard's candidates,
and all a shard has to learn is how long that part is. `kept` says it from the values of all shards;
the exchanges differ in how many values travel to know it:

    gather       all of them
    candidates   the first few, and all of them for the tokens where that was not enough
    butterfly    the k largest so far, merged in log2(shards) swaps

docs/distributed.md has their bytes. Shape suffixes: B tokens, W candidates, S shards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scaling.train.mesh import Axis

PURPOSE = "candidates"
NO_ID = torch.iinfo(torch.int32).max


class Selection(NamedTuple):
    """How many of a shard's candidates each token keeps."""

    kept_B: Tensor
    """int64 [B]."""
    n_redone: int
    """Tokens for which more had to be asked."""


Exchange = Callable[[Tensor, Tensor, int, Axis], Selection]
"""(values [B, W] in descending order, their global ids [B, W], k, axis) -> selection."""


def kept(values_SBW: Tensor, k: int) -> Tensor:
    """How many of each shard's candidates are among the k largest of all, [S, B] int64.

    Fewer than k candidates in all are all kept.
    """
    n_shards, _, width = values_SBW.shape
    k = min(k, n_shards * width)
    flat_BC = values_SBW.transpose(0, 1).flatten(1)
    kth_B1 = flat_BC.topk(k, dim=1).values[:, -1:]
    above_SB = (values_SBW > kth_B1).sum(dim=2)
    equal_SB = (values_SBW == kth_B1).sum(dim=2)
    # Of those equal to the k-th, the lowest ids: the first shards' first.
    left_SB = k - above_SB.sum(dim=0) - (equal_SB.cumsum(dim=0) - equal_SB)
    return above_SB + torch.minimum(equal_SB, left_SB.clamp_min(0))


def gather(values_BW: Tensor, ids_BW: Tensor, k: int, axis: Axis) -> Selection:
    """All values of all shards."""
    return Selection(kept(axis.gather(values_BW, PURPOSE), k)[axis.index], 0)


def candidates(width: int) -> Exchange:
    """The first `width` values; where some shard's last of them is kept, all values."""

    def exchange(values_BW: Tensor, ids_BW: Tensor, k: int, axis: Axis) -> Selection:
        if width >= values_BW.shape[1]:
            return gather(values_BW, ids_BW, k, axis)
        kept_SB = kept(axis.gather(values_BW[:, :width], PURPOSE), k)
        # What a shard did not offer may be larger than what others did: only a row in which
        # every shard offered one that is not kept is settled. All shards see the same rows.
        unsettled = (kept_SB == width).any(dim=0).nonzero().flatten()
        kept_B = kept_SB[axis.index]
        if len(unsettled):
            again, _ = gather(values_BW[unsettled], ids_BW[unsettled], k, axis)
            kept_B = kept_B.index_copy(0, unsettled, again)
        return Selection(kept_B, len(unsettled))

    return exchange


def limited(width: int) -> Exchange:
    """The first `width` values and no more: the paper's capacity, which may lose latents."""

    def exchange(values_BW: Tensor, ids_BW: Tensor, k: int, axis: Axis) -> Selection:
        return gather(values_BW[:, :width], ids_BW[:, :width], k, axis)

    return exchange


def butterfly(values_BW: Tensor, ids_BW: Tensor, k: int, axis: Axis) -> Selection:
    """Swap lists with the shard whose index differs in one bit, merge, go on with the next bit.

    After each swap both hold the k largest of a range of shards twice as long; in the end all hold
    the k largest of all, whose last one is the bound. The axis's size is a power of two.
    """
    merged, ids = values_BW, ids_BW.to(torch.int32)
    for bit in range(axis.size.bit_length() - 1):
        partner = axis.index ^ (1 << bit)
        theirs, their_ids = _unpack(axis.swap(_pack(merged, ids), partner, PURPOSE), merged.dtype)
        lower_first = [(merged, ids), (theirs, their_ids)]
        if partner < axis.index:
            lower_first.reverse()
        merged, ids = _merge(lower_first, k)
    bound_B1, last_id_B1 = merged[:, -1:], ids[:, -1:]
    inside = (values_BW > bound_B1) | ((values_BW == bound_B1) & (ids_BW <= last_id_B1))
    return Selection(inside.sum(dim=1), 0)


def _merge(lists: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """The k largest of sorted lists; of equal values, the earlier list's (the lower ids) first."""
    values = torch.cat([values for values, _ in lists], dim=1)
    ids = torch.cat([ids for _, ids in lists], dim=1)
    ordered, order = values.sort(dim=1, descending=True, stable=True)
    return ordered[:, :k], ids.gather(1, order[:, :k])


def _pack(values: Tensor, ids: Tensor) -> Tensor:
    """Values and ids as one int32 tensor, so that they travel as one message."""
    return torch.cat([values.contiguous().view(torch.int32), ids], dim=1)


def _unpack(packed: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    words = dtype.itemsize // 4
    width = packed.shape[1] // (words + 1)
    return packed[:, : words * width].contiguous().view(dtype), packed[:, words * width :]
