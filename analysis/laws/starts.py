"""Where least squares begins: guesses read off the data, the same for the same data.

All logs are centered, so a guess made here moves with the units of n, k and tokens. A start is a
guess of the floor; given the floor, the rest of the law is linear in its logs.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from analysis.laws.forms import Array, Points

# Share of the lowest loss at each k that the floor takes, and how much of the lowest losses'
# slope in k the floor copies. The true floor of a sweep lies between none and all of both.
_FLOOR_SHARES = (0.05, 0.3, 0.5, 0.7, 0.85, 0.95)
_FLOOR_SLOPES = (0.0, 1.0, 2.0)
# Excess over the limit of endless training at the middle of the data, and its exponents.
_EXCESSES = (0.03, 0.15, 0.6)
_TOKEN_EXPONENTS = (0.35, 0.8)
_BUDGET_EXPONENT = 0.65  # tokens to convergence ~ n^0.65, Gao et al. 2024
_FEWER_SHARES = (0.3, 0.6, 0.9)
_LEAST_REMAINDER = 1e-3  # of the loss, so that its log exists where the guess is too high


def latents_and_k(logs: Points, log_loss: Array) -> Array:
    """Starts [S, 6] for exp(1, k, n, kn) + exp(1, k)."""
    level, slope = _lowest_by_k(logs["k"], log_loss)
    guesses = product(_FLOOR_SHARES, _FLOOR_SLOPES)
    return np.array(
        [_given_floor(logs, log_loss, level + np.log(f), slope * e) for f, e in guesses]
    )


def with_tokens(logs: Points, log_loss: Array) -> Array:
    """Starts [S, 9] for the above times [1 + exp(1, n, tokens)]."""
    rows = []
    for excess, c, share in product(_EXCESSES, _TOKEN_EXPONENTS, _FEWER_SHARES):
        tail = np.array([np.log(excess), c * _BUDGET_EXPONENT, -c])
        log_excess = tail[0] + tail[1] * logs["n"] + tail[2] * logs["tokens"]
        limit = log_loss - np.logaddexp(0.0, log_excess)
        level, slope = _lowest_by_k(logs["k"], limit)
        rows.append(np.append(_given_floor(logs, limit, level + np.log(share), slope), tail))
    return np.array(rows)


def plus_tokens(logs: Points, log_loss: Array) -> Array:
    """Starts [S, 9] for the first two terms plus exp(1, n, tokens)."""
    rows = []
    for excess, c, share in product(_EXCESSES, _TOKEN_EXPONENTS, _FEWER_SHARES):
        level = log_loss.mean() + np.log(excess / (1.0 + excess))
        tail = np.array([level, c * _BUDGET_EXPONENT, -c])
        log_tail = tail[0] + tail[1] * logs["n"] + tail[2] * logs["tokens"]
        limit = log_loss + np.log(np.maximum(1.0 - np.exp(log_tail - log_loss), _LEAST_REMAINDER))
        level, slope = _lowest_by_k(logs["k"], limit)
        rows.append(np.append(_given_floor(logs, limit, level + np.log(share), slope), tail))
    return np.array(rows)


def _lowest_by_k(log_k: Array, log_loss: Array) -> tuple[float, float]:
    """Level (at the center) and slope in ln k of the lowest loss at each k."""
    levels = np.unique(log_k)
    lowest = np.array([log_loss[log_k == level].min() for level in levels])
    slope, level = np.polyfit(levels, lowest, 1)
    return float(level), float(slope)


def _given_floor(logs: Points, log_loss: Array, level: float, slope: float) -> Array:
    """Linear least squares for the first term once exp(level + slope ln k) is taken away."""
    floor_share = np.exp(level + slope * logs["k"] - log_loss)
    remainder = log_loss + np.log(np.maximum(1.0 - floor_share, _LEAST_REMAINDER))
    features = np.column_stack(
        [np.ones_like(remainder), logs["k"], logs["n"], logs["k"] * logs["n"]]
    )
    first = np.linalg.lstsq(features, remainder, rcond=None)[0]
    return np.append(first, [level, slope])
