"""How the loss at one L0 falls with n: a power law through the losses read, with their intervals.

L = A n^-b, a straight line in ln n and ln L, for each arm. Each n weighs by the variance of its
loss (seeds and the doubt of the curve). The covariance is scaled by the pooled ratio
(f + chi2) / (f + N - 2), at least 1, where f are the degrees of freedom of the seeds' scatter and
chi2 is the line's weighted sum of squares: so points that lie off the line widen the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from analysis.laws.forms import Array
from analysis.sparsity.equal import AtL0, noise_of
from analysis.uncertainty.seeds import UPPER, Bounds

LEAST_SIZES = 3


@dataclass(frozen=True)
class PowerOfN:
    """L = A n^-b at one L0. No floor: for the n measured, and not beyond."""

    arm: str
    A: float
    b: float
    b_interval: Bounds
    sizes: Array  # [N] values of n, ascending
    n_middle: float
    log_middle: float  # ln loss of the line at n_middle
    rms_log_residual: float

    def at(self, n: Array) -> Array:
        return np.exp(self.log_middle - self.b * np.log(n / self.n_middle))


def power_of_n(found: Sequence[AtL0], arm: str) -> PowerOfN | None:
    """Through one arm's losses at one L0; None for fewer than three n."""
    points = sorted((at for at in found if at.place.arm == arm), key=lambda at: at.place.n_latents)
    if len(points) < LEAST_SIZES:
        return None
    sizes = np.array([at.place.n_latents for at in points], dtype=np.float64)
    variances, freedom = _variances(points, found, arm)
    y = np.array([at.log_loss for at in points])
    center = float(np.average(np.log(sizes), weights=1.0 / variances))
    design = np.stack([np.ones_like(y), np.log(sizes) - center], axis=1)
    information = design.T @ (design / variances[:, None])
    level, slope = np.linalg.solve(information, design.T @ (y / variances)).tolist()
    residuals = y - design @ np.array([level, slope])
    pooled = freedom + len(points) - 2
    scale = (freedom + float(np.sum(residuals**2 / variances))) / pooled
    # Without repeated seeds the variances are of no known size, and only the ratio has one.
    scale = max(scale, 1.0) if freedom else scale
    error = float(np.sqrt(np.linalg.inv(information)[1, 1] * scale))
    half = float(stdtrit(pooled, UPPER)) * error
    return PowerOfN(
        arm=arm,
        A=float(np.exp(level - slope * center)),
        b=-slope,
        b_interval=Bounds(-slope - half, -slope + half),
        sizes=sizes,
        n_middle=float(np.exp(center)),
        log_middle=level,
        rms_log_residual=float(np.sqrt(np.mean(residuals**2))),
    )


def _variances(points: Sequence[AtL0], found: Sequence[AtL0], arm: str) -> tuple[Array, float]:
    """Of each point's ln loss [N], and the degrees of freedom behind them; equal ones and 0 where
    no seed is repeated, or nothing scatters at all."""
    noise = noise_of(found, arm)
    if noise is None:
        return np.ones(len(points)), 0.0
    seeds = np.array([len(at.by_seed) for at in points], dtype=np.float64)
    doubts = np.array([at.doubt for at in points])
    variances = noise.variance / seeds + doubts**2
    return (variances, noise.freedom) if (variances > 0).all() else (np.ones(len(points)), 0.0)
