"""Laws that the data allow beside the fitted one, to derive a quantity from each.

Whatever follows from a law (a best size, an exponent) gets its interval by deriving it anew: from
laws nudged along each direction of a stored fit's doubt, or from bootstrap refits. Laws DRAWN from
the covariance are no third way: along the curved valley of these fits a normal draw leaves it, and
ln L is convex in the coefficients, so drawn laws lie too high (docs/planning.md has the numbers).

B = laws, P = coefficients of the form, in plain logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import stdtrit

from analysis.laws.forms import Array
from analysis.planning.stored import StoredLaw
from analysis.uncertainty.bootstrap import Refits

_NUDGE = 0.05  # standard errors: the derivative there, yet far above rounding


class Estimate(NamedTuple):
    """A value and its 95% interval. An end of 0 or infinity: not within any size looked at; NaN:
    the fit has no intervals."""

    value: float
    low: float
    high: float


class Variants(Protocol):
    """Laws to derive a quantity from, and what their spread says of it."""

    @property
    def coefficients(self) -> Array:
        """[B, P]."""
        ...

    def interval(self, value: float, derived: Array) -> Estimate:
        """95% interval of a quantity that is `value` in the fit and `derived` [B] in these."""
        ...


@dataclass(frozen=True)
class Nudges:
    """The delta method: pairs of laws a little to both sides, along each direction of doubt."""

    coefficients: Array  # [2 P, P], the upper sides first
    quantile: float  # of Student's t

    def interval(self, value: float, derived: Array) -> Estimate:
        """Student's t times the root sum of squares of the derivatives."""
        upper, lower = np.split(derived, 2)
        if not np.isfinite(derived).all():
            return Estimate(value, -np.inf, np.inf)
        half = self.quantile * float(np.linalg.norm((upper - lower) / (2 * _NUDGE)))
        return Estimate(value, value - half, value + half)


@dataclass(frozen=True)
class Resampled:
    """Laws of bootstrap refits: percentiles, so that ends need not lie evenly about the value."""

    coefficients: Array

    def interval(self, value: float, derived: Array) -> Estimate:
        if np.isnan(derived).any():
            return Estimate(value, -np.inf, np.inf)
        low, high = np.quantile(derived, [0.025, 0.975], method="nearest")
        return Estimate(value, float(low), float(high))


@dataclass(frozen=True)
class NoVariants:
    """For a fit whose runs left a combination of parameters free."""

    coefficients: Array  # [0, P]

    def interval(self, value: float, derived: Array) -> Estimate:
        return Estimate(value, np.nan, np.nan)


def nudged(stored: StoredLaw) -> Nudges | NoVariants:
    """From the fit's covariance; without one there are no intervals."""
    if stored.covariance is None:
        return NoVariants(np.empty((0, len(stored.law.parameter_names))))
    steps = _NUDGE * root_of(stored.coefficient_covariance()).T
    fitted = stored.law.coefficients()
    quantile = float(stdtrit(stored.degrees_of_freedom, 0.975))
    return Nudges(np.concatenate([fitted + steps, fitted - steps]), quantile)


def resampled(refits: Refits) -> Resampled:
    """From the refits of a bootstrap."""
    to_plain = type(refits.fit.law).form.uncenter(refits.fit.center)
    return Resampled(refits.coefficients @ to_plain.T)


def exponential(estimate: Estimate) -> Estimate:
    """Of an estimate of a log: the estimate of the quantity."""
    with np.errstate(over="ignore"):  # an end beyond every float is infinite
        return Estimate(*(float(np.exp(end)) for end in estimate))


def root_of(covariance: Array) -> Array:
    """R with R R' = covariance. Rounding may leave eigenvalues of -1e-20: they count as zero."""
    scale = np.sqrt(np.diag(covariance))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    return scale[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))
