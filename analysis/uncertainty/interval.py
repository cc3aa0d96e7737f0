"""Intervals: their ends as a value that all kinds share, and the one by Student's t on the log."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from analysis.laws.forms import Array


class Interval(NamedTuple):
    """Ends of intervals at M points, [M] each, in the units of the response."""

    low: Array
    high: Array


def tails(level: float) -> Array:
    """Shares below the lower and the upper end, [2]."""
    return np.array([0.5 - level / 2, 0.5 + level / 2])


def student_interval(
    log_value: Array, variance: Array, freedom: float, level: float = 0.95
) -> Interval:
    """exp(log_value -+ t sqrt(variance)), [M] each; t of `freedom` degrees of freedom."""
    half_width = stdtrit(freedom, 0.5 + level / 2) * np.sqrt(variance)
    return Interval(np.exp(log_value - half_width), np.exp(log_value + half_width))
