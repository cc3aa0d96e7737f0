"""Huber's fit: least squares that a few runs far off cannot pull along.

Huber's loss of ln L is quadratic up to 1.345 standard deviations and linear beyond (95% of the
efficiency of least squares where errors are normal). The standard deviation is 1.4826 times the
median absolute residual, and is found anew as the fit moves (Huber 1964; Huber and Ronchetti 2009,
chapters 7 and 8).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.batched import huber_loss, refit
from analysis.laws.forms import Array, Design

LINEAR_FROM = 1.345  # standard deviations
MAD_TO_SD = 1.4826  # makes the median absolute residual a standard deviation of normal errors
_MOST_ROUNDS = 100
_SCALE_SETTLED = 1e-7
_EXACT = 1e-10  # below this scale the runs lie on the law, and no weight means anything
_TOLERANCE = 1e-14


class RobustFit(NamedTuple):
    """From S starts: coefficients [S, P], the scale of each [S], and its cost at `scale`, [S]."""

    coefficients: Array
    settled: NDArray[np.bool_]
    costs: Array  # half of Huber's loss at one scale for all, so that starts can be compared
    scale: float  # standard deviation of ln L by the best start


def scale_of(residuals: Array, n_parameters: int) -> Array:
    """Standard deviation by the median absolute residual, over the last axis.

    Fitted residuals are too small by the freedom the parameters took, as in RSS / (M - P).
    """
    n_runs = residuals.shape[-1]
    freedom = np.sqrt(n_runs / (n_runs - n_parameters))
    return MAD_TO_SD * freedom * np.median(np.abs(residuals), axis=-1)


def robust_fits(design: Design, log_loss: Array, starts: Array) -> RobustFit:
    """Huber's fit from each of starts [S, P] (optima of least squares), fit and scale in turns."""
    at, ones = starts, np.ones((len(starts), len(log_loss)))
    scales = _scales_at(design, log_loss, at)
    settled = scales < _EXACT
    for _ in range(_MOST_ROUNDS):
        if settled.all():
            break
        limits = LINEAR_FROM * np.maximum(scales, _EXACT)
        at, _ = refit(design, log_loss, ones, at, limit=limits, tolerance=_TOLERANCE)
        before, scales = scales, _scales_at(design, log_loss, at)
        settled = (np.abs(scales - before) <= _SCALE_SETTLED * before) | (scales < _EXACT)
    residuals = design.log_value(at) - log_loss
    costs = 0.5 * huber_loss(residuals, limit_of(scales.min())).sum(axis=-1)
    return RobustFit(at, settled, costs, float(scales[np.argmin(costs)]))


def _scales_at(design: Design, log_loss: Array, at: Array) -> Array:
    return scale_of(design.log_value(at) - log_loss, at.shape[-1])


def limit_of(scale: float) -> float:
    """Residual beyond which a run weighs less; above 0 also where all runs lie on the law."""
    return LINEAR_FROM * max(scale, _EXACT)


def parameter_variance(clipped: Array, share: float, n_parameters: int) -> float:
    """s^2 for s^2 (J'J)^-1 of Huber's fit (Huber and Ronchetti 2009, equation 7.81).

    The mean square of the clipped residuals [M] over the squared share of runs not clipped.
    """
    n_runs = len(clipped)
    correction = 1.0 + n_parameters / n_runs * (1.0 - share) / share
    squares = float(clipped @ clipped) / (n_runs - n_parameters)
    return correction**2 * squares / share**2
