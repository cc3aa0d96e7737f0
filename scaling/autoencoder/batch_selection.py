"""The largest values of a whole batch, exact and over all shards and replicas.

The order of positive floats is that of their bits read as integers. So the M-th largest is found
digit by digit, from the highest: of the values that share the digits found so far, count how many
have each next digit, and add the counts up over shards and replicas. Four exchanges of 256 counts
for float32, eight for float64, whatever the batch. Of values equal to the M-th, those of the lowest
token, and in a token of the lowest id, are kept.

Shape suffixes: B tokens, N latents held here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scaling.autoencoder.shard import LatentShard

DIGIT_BITS = 8
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class Bound(NamedTuple):
    """The smallest value that is kept, and how many equal to it are."""

    value: Tensor
    """0-d."""
    n_kept: int
    n_equal: int


def select_of_batch(values_BN: Tensor, n_kept: int, shard: LatentShard) -> Tensor:
    """Which values are among the `n_kept` largest positive ones of all shards and replicas, [B, N]
    bool; all positive ones where there are fewer. Collective.

    NaN counts as the largest of all, so that it stays to be seen.
    """
    values_BN = values_BN.nan_to_num(nan=torch.inf, posinf=torch.inf)
    bound = _bound(values_BN[values_BN > 0], n_kept, shard)
    if bound is None:
        return torch.zeros_like(values_BN, dtype=torch.bool)
    equal_BN = values_BN == bound.value
    if bound.n_kept < bound.n_equal:
        before_B = shard.counted_before(equal_BN.sum(dim=1))
        equal_BN &= before_B[:, None] + equal_BN.cumsum(dim=1) <= bound.n_kept
    return (values_BN > bound.value) | equal_BN


def _bound(positive: Tensor, rank: int, shard: LatentShard) -> Bound | None:
    """Of the `rank` largest of all shards' positive values (1-d); None where there are none."""
    bits = positive.view(_INTEGERS[positive.dtype])
    found = n_equal = 0
    for shift in reversed(range(0, 8 * positive.element_size(), DIGIT_BITS)):
        digits = (bits >> shift) & (2**DIGIT_BITS - 1)
        counts = shard.sum_over_all(torch.bincount(digits, minlength=2**DIGIT_BITS)).tolist()
        rank = min(rank, sum(counts))
        if not rank:
            return None
        digit = 2**DIGIT_BITS - 1
        while rank > counts[digit]:
            rank -= counts[digit]
            digit -= 1
        found, n_equal, bits = found | digit << shift, counts[digit], bits[digits == digit]
    value = torch.tensor(found, dtype=bits.dtype, device=bits.device).view(positive.dtype)
    return Bound(value, rank, n_equal)
