"""Where least squares begins: guesses read off the data, the same for the same data.

All logs are centered, so a guess made here moves with the units of the axes. A start is a guess of
the floor (and of a token term); given these, the rest of the law is linear in its logs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from analysis.laws.forms import CONSTANT, Array, Form, Points, Term
from analysis.laws.limit import Limit

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


def limit_alone(limit: Limit, logs: Points, log_loss: Array) -> Array:
    """Starts [S, P] for exp(falling) + exp(floor); one only, the solution, where there is none."""
    return _given_floors(limit, logs, log_loss, _FLOOR_SHARES, _FLOOR_SLOPES)


def times_tokens(limit: Limit, tail: Term, logs: Points, log_loss: Array) -> Array:
    """Starts for the limit times [1 + exp(tail)]."""
    rows = []
    for excess, c in product(_EXCESSES, _TOKEN_EXPONENTS):
        coefficients = _tail(tail, np.log(excess), c)
        endless = log_loss - np.logaddexp(0.0, _linear(tail, logs) @ coefficients)
        rows += [np.append(row, coefficients) for row in _fewer(limit, logs, endless)]
    return np.array(rows)


def plus_tokens(limit: Limit, tail: Term, logs: Points, log_loss: Array) -> Array:
    """Starts for the limit plus exp(tail)."""
    rows = []
    for excess, c in product(_EXCESSES, _TOKEN_EXPONENTS):
        coefficients = _tail(tail, log_loss.mean() + np.log(excess / (1.0 + excess)), c)
        endless = _less(log_loss, _linear(tail, logs) @ coefficients)
        rows += [np.append(row, coefficients) for row in _fewer(limit, logs, endless)]
    return np.array(rows)


def straight_line(term: Term, logs: Points, log_value: Array) -> Array:
    """The one start [1, P] of a single exponential: its solution, as it is linear in its logs."""
    solution = np.linalg.lstsq(_linear(term, logs), log_value, rcond=None)[0]
    return np.array([solution], dtype=np.float64)


def _tail(tail: Term, level: float, c: float) -> Array:
    """Coefficients of the token term; exponents of k begin at zero."""
    known = {CONSTANT: level, ("n",): c * _BUDGET_EXPONENT, ("tokens",): -c}
    return np.array([known.get(monomial, 0.0) for monomial in tail])


def _fewer(limit: Limit, logs: Points, log_loss: Array) -> Array:
    return _given_floors(limit, logs, log_loss, _FEWER_SHARES, (1.0,))


def _given_floors(
    limit: Limit, logs: Points, log_loss: Array, shares: Sequence[float], slopes: Sequence[float]
) -> Array:
    falling, *floors = limit.terms
    if not floors:
        return straight_line(falling, logs, log_loss)
    features = _linear(floors[0], logs)
    rows = []
    for floor in _floors(floors[0], logs, log_loss, shares, slopes):
        remainder = _less(log_loss, features @ floor)
        rows.append(np.append(straight_line(falling, logs, remainder), floor))
    return np.array(rows)


def _floors(
    floor: Term, logs: Points, log_loss: Array, shares: Sequence[float], slopes: Sequence[float]
) -> Iterator[Array]:
    """Guesses of the floor's coefficients: its level, and its slope where it has one."""
    if len(floor) == 1:
        yield from (np.array([log_loss.min() + np.log(share)]) for share in shares)
        return
    (axis,) = floor[1]
    level, slope = _lowest_by(logs[axis], log_loss)
    for share, copied in product(shares, slopes):
        yield np.array([level + np.log(share), slope * copied])


def _lowest_by(log_k: Array, log_loss: Array) -> tuple[float, float]:
    """Level (at the center) and slope in ln k of the lowest loss at each k."""
    levels = np.unique(log_k)
    lowest = np.array([log_loss[log_k == level].min() for level in levels])
    slope, level = np.polyfit(levels, lowest, 1)
    return float(level), float(slope)


def _less(log_loss: Array, log_part: Array) -> Array:
    """Log of what is left of the loss without a part of it."""
    return log_loss + np.log(np.maximum(1.0 - np.exp(log_part - log_loss), _LEAST_REMAINDER))


def _linear(term: Term, logs: Points) -> Array:
    return Form(((term,),)).design(logs).features_MP
