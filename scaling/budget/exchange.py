"""How shards agree on the k largest of a token: the widths, bytes and chances of each way.

All chances assume that the k largest latents of a token fall on the shards independently and
evenly. Where they do not (one shard is hot), more rows are redone and the approximation loses
more; the exact exchanges stay exact.
"""

from __future__ import annotations

from functools import cache
from math import ceil, exp, lgamma, log, log1p

import numpy as np
from numpy.typing import NDArray

MAX_REDONE_SHARE = 0.01
"""Of the tokens whose candidates may turn out too few."""
EXCHANGES = ("gather", "candidates", "butterfly")
VALUE_BYTES = 4
ID_BYTES = 4


@cache
def candidate_width(k: int, n_local: int, shards: int) -> int:
    """Latents each shard offers per token so that under 1% of the tokens need a second look.

    Where the k largest fall on the shards independently, a shard holds Binomial(k, 1 / shards) of
    them; a token is redone when the last latent that some shard offered is among the k largest.
    """
    widest, p = min(k, n_local), 1 / shards
    at_least = 1.0
    for width in range(1, widest):
        at_least -= _binomial_chance(k, p, width - 1)
        if shards * at_least < MAX_REDONE_SHARE:
            return width
    return widest


def capacity_width(k: int, n_local: int, shards: int, capacity_factor: float) -> int:
    """Latents each shard may keep per token under the paper's approximation."""
    return min(k, n_local, ceil(k * capacity_factor / shards))


def butterfly_widths(k: int, n_local: int, shards: int) -> list[int]:
    """Values that each round of a butterfly swaps per token: all seen so far, k at most."""
    return [min(k, n_local * 2**step) for step in range(shards.bit_length() - 1)]


def exchange_bytes_per_token(
    exchange: str, k: int, n_local: int, shards: int, *, redone_share: float = MAX_REDONE_SHARE
) -> float:
    """Bytes a shard sends per token (float32 values) to settle which latents are the k largest.

    gather: a ring all-gather of min(k, n_local) values. candidates: of `candidate_width` values,
    and of all again for the tokens that are redone. butterfly: in each of log2(shards) rounds k
    values with their ids (int32).
    """
    widest = min(k, n_local)
    match exchange:
        case "gather":
            return VALUE_BYTES * (shards - 1) * widest
        case "candidates":
            width = candidate_width(k, n_local, shards)
            again = redone_share * widest if width < widest else 0
            return VALUE_BYTES * (shards - 1) * (width + again)
        case "butterfly":
            pair_bytes = float(VALUE_BYTES + ID_BYTES)
            return pair_bytes * sum(butterfly_widths(k, n_local, shards))
    raise ValueError(f"exchange={exchange} is not one of {', '.join(EXCHANGES)}")


def capacity_bytes_per_token(k: int, n_local: int, shards: int, capacity_factor: float) -> int:
    """Bytes a shard sends per token (float32 values) under the paper's approximation."""
    return VALUE_BYTES * (shards - 1) * capacity_width(k, n_local, shards, capacity_factor)


def choose_exchange(k: int, n_local: int, shards: int) -> str:
    """The exact exchange with the fewest predicted bytes; the simplest of equals."""
    able = [name for name in EXCHANGES if name != "butterfly" or shards & (shards - 1) == 0]
    return min(able, key=lambda name: exchange_bytes_per_token(name, k, n_local, shards))


def redone_share(k: int, n_local: int, shards: int) -> float:
    """Expected share of tokens that the exchange `candidates` looks at twice."""
    width = candidate_width(k, n_local, shards)
    return 0.0 if width == min(k, n_local) else crowded_share(k, shards, width)


def truncated_share(k: int, n_local: int, shards: int, capacity_factor: float) -> float:
    """Expected share of tokens that lose at least one of their k latents to a capacity factor."""
    width = capacity_width(k, n_local, shards, capacity_factor)
    return 0.0 if width == min(k, n_local) else crowded_share(k, shards, width + 1)


@cache
def crowded_share(k: int, shards: int, least: int) -> float:
    """P(some shard holds at least `least` of the k largest): exact, not a union bound.

    Counts on the shards are Poisson variables of mean k / shards, given that they sum to k. So
    the chance that none reaches `least` is a coefficient of a power of one short polynomial.
    """
    if least > k:
        return 0.0
    mean = k / shards
    one_shard = [exp(j * log(mean) - mean - lgamma(j + 1)) for j in range(least)]
    none_crowded = float(_power(one_shard, shards, k)[k])
    all_counts = exp(k * log(k) - k - lgamma(k + 1))
    return min(1.0, max(0.0, 1 - none_crowded / all_counts))


def _power(polynomial: list[float], exponent: int, degree: int) -> NDArray[np.float64]:
    """polynomial ** exponent, up to x ** degree; all terms are positive, so nothing cancels."""
    result, square = np.ones(1), np.array(polynomial)
    while exponent:
        if exponent & 1:
            result = np.convolve(result, square)[: degree + 1]
        exponent >>= 1
        if exponent:
            square = np.convolve(square, square)[: degree + 1]
    return np.pad(result, (0, degree + 1 - len(result)))


def _binomial_chance(n: int, p: float, count: int) -> float:
    """P(X = count) for X ~ Binomial(n, p); by logarithms, as the coefficient may be huge."""
    if p == 1.0:
        return float(count == n)
    ways = lgamma(n + 1) - lgamma(count + 1) - lgamma(n - count + 1)
    return exp(ways + count * log(p) + (n - count) * log1p(-p))
