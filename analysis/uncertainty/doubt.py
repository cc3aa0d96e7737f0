"""What is not known of a fit, in one place: every interval by Student's t is made from a Doubt.

A fit has one of its own, for independent errors; its clusters (clusters.py) have another, for
errors that runs share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fitting.fit import Fit
from analysis.laws.forms import Array, Points
from analysis.uncertainty.interval import Interval, student_interval


@dataclass(frozen=True)
class Doubt:
    """Of a fit with P coefficients."""

    covariance: Array  # [P, P], of the coefficients in the fit's centered logs
    freedom: float  # degrees of freedom of Student's t
    run_variance: float  # of ln response of ONE new run about the law

    def at(self, jacobian: Array) -> Array:
        """Variance [M] of what has the derivative [M, P] by the centered coefficients."""
        return np.einsum("mp,pq,mq->m", jacobian, self.covariance, jacobian)


def plain_doubt(fit: Fit) -> Doubt:
    """For independent errors: s^2 (J'J)^-1, t of M - P, and s^2."""
    return Doubt(fit.centered_covariance, fit.degrees_of_freedom, fit.variance)


def prediction_interval(
    fit: Fit, points: Points, level: float = 0.95, *, noise: bool = True, doubt: Doubt | None = None
) -> Interval:
    """Interval for the loss of a NEW run at points, [M] each: parameters' doubt and run noise.

    Student's t times sqrt(s^2 + J C J') on log loss, C the covariance of the coefficients;
    without noise (s^2 left out), the interval of the law itself. C, s^2 and the degrees of freedom
    are those of independent errors unless a doubt is given. It assumes that the law holds there:
    it knows nothing of a wrong form.
    """
    doubt = plain_doubt(fit) if doubt is None else doubt
    value, jacobian = fit.design(points).value_and_jacobian(fit.centered)
    variance = doubt.at(jacobian) + doubt.run_variance * noise
    return student_interval(value, variance, doubt.freedom, level)
