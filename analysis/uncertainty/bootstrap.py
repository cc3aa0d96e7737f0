"""Case bootstrap over runs or clusters: thousands of refits, warm-started at the fit of all runs.

A refit gives each run the number of times it was drawn as its weight, and is fitted by the method
of the fit it begins at (analysis/fitting/batched.py).

Legend: B = refits, M = runs, P = coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import TableError
from analysis.fitting.batched import refit
from analysis.fitting.checks import LEAST_LEVELS
from analysis.fitting.fit import Fit
from analysis.laws.forms import Array, Points
from analysis.uncertainty.components import Ids, in_columns, variance_components
from analysis.uncertainty.interval import Interval, tails

# Per sample, on average. Two more runs than parameters, the least that a fit takes, make one draw
# in 15 (8 runs) to 300 (12 runs) usable.
_MOST_DRAWS = 1000


@dataclass(frozen=True)
class Refits:
    """Coefficients [B, P] in the centered logs of `fit`, one row per bootstrap sample."""

    fit: Fit
    coefficients: Array
    settled: NDArray[np.bool_]  # [B], False where the step limit came first
    seed: int
    clusters: Ids | None = None  # drawn in the place of runs, [M] or [M, F]

    def __len__(self) -> int:
        return len(self.coefficients)

    @property
    def share_unsettled(self) -> float:
        return float(1.0 - self.settled.mean())

    def parameters(self) -> Array:
        """Named parameters [B, P] of every refit, at the reference sizes of the fit."""
        law = type(self.fit.law)
        plain = self.coefficients @ law.form.uncenter(self.fit.center).T
        return law.parameters_from(plain, self.fit.reference)

    def parameter_intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Percentile interval of each parameter; infinite where refits have no finite value."""
        names = self.fit.law.parameter_names
        low, high = np.quantile(self.parameters(), tails(level), axis=0, method="nearest")
        return {n: (float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)}

    def band(self, points: Points, level: float = 0.95) -> Interval:
        """Interval of the law itself at points, [M] each, in units of loss."""
        log_loss = self.fit.design(points).log_value(self.coefficients)
        return Interval(*np.exp(np.quantile(log_loss, tails(level), axis=0)))

    def prediction_interval(self, points: Points, level: float = 0.95) -> Interval:
        """Interval for the response of a NEW run at points, [M] each: refits plus a run's noise.

        The noise is normal with the fit's variance, one draw for each refit and point; where
        clusters were drawn, with the variances of their shared errors too.
        """
        log_loss = self.fit.design(points).log_value(self.coefficients)
        noise = np.random.default_rng([self.seed, 1]).standard_normal(log_loss.shape)
        drawn = log_loss + np.sqrt(self._run_variance) * noise
        return Interval(*np.exp(np.quantile(drawn, tails(level), axis=0)))

    @property
    def _run_variance(self) -> float:
        if self.clusters is None:
            return self.fit.variance
        return variance_components(self.fit, self.clusters).of_new_run


def bootstrap(fit: Fit, n_refits: int, seed: int, clusters: Ids | None = None) -> Refits:
    """Refit `n_refits` resamples of the runs. The same seed gives the same refits.

    `clusters` (cluster_ids, int [M] or [M, F]) draws clusters in the place of runs; with several
    ways at once a run counts the product of the times its clusters were drawn (the pigeonhole
    bootstrap, Owen 2007).
    """
    rng = np.random.default_rng(seed)
    least = fit.jacobian.shape[1] + 1
    if clusters is None:
        counts_BM = resample(rng, n_refits, len(fit.table), least)
    else:
        counts_BM = resample_clusters(rng, n_refits, clusters, _levels_of(fit), least)
    design = fit.design(fit.table.points)
    coefficients, settled = refit(
        design, fit.table.log_loss, counts_BM, fit.centered, limit=fit.huber_limit
    )
    return Refits(fit, coefficients, settled, seed, clusters)


def resample(rng: np.random.Generator, n_samples: int, n_runs: int, least: int) -> Array:
    """How often each run was drawn, float64 [n_samples, n_runs]; rows sum to n_runs.

    Samples with fewer than `least` different runs cannot determine the law and are drawn again;
    TableError where that is of no use.
    """

    def draw(n: int) -> Array:
        return rng.multinomial(n_runs, np.full(n_runs, 1.0 / n_runs), size=n).astype(np.float64)

    return _until_good(draw, n_samples, lambda counts: np.count_nonzero(counts, axis=1) >= least)


def resample_clusters(
    rng: np.random.Generator, n_samples: int, clusters: Ids, levels: Ids, least: int
) -> Array:
    """How often each run was drawn, float64 [n_samples, M], when whole clusters are drawn.

    `levels` [M, A] number each run's level on each axis. Samples with fewer than `least` different
    runs, or LEAST_LEVELS of an axis, cannot determine the law and are drawn again; TableError where
    that is of no use.
    """
    ways = in_columns(clusters)

    def draw(n: int) -> Array:
        counts = np.ones((n, len(ways)))
        for ids in ways.T:
            size = int(ids.max()) + 1
            counts *= rng.multinomial(size, np.full(size, 1.0 / size), size=n)[:, ids]
        return counts

    def good(counts: Array) -> NDArray[np.bool_]:
        enough = np.count_nonzero(counts, axis=1) >= least
        for of_axis in levels.T:
            drawn = counts @ np.eye(int(of_axis.max()) + 1)[of_axis]
            enough &= np.count_nonzero(drawn, axis=1) >= LEAST_LEVELS
        return enough

    return _until_good(draw, n_samples, good)


def _until_good(
    draw: Callable[[int], Array], n_samples: int, good: Callable[[Array], NDArray[np.bool_]]
) -> Array:
    counts = draw(n_samples)
    poor, left = ~good(counts), _MOST_DRAWS * n_samples
    while poor.any() and left > 0:
        again = np.flatnonzero(poor)
        counts[again] = draw(len(again))
        poor[again] = ~good(counts[again])
        left -= len(again)
    if poor.any():
        raise TableError(
            f"{int(poor.sum())} of {n_samples} bootstrap samples hold too few different runs or "
            f"levels to determine the law, after {_MOST_DRAWS} draws for each. Take intervals from "
            "standard errors (--bootstrap 0), add runs, or, if clusters are drawn, name clusters "
            "of which there are more (--clusters)."
        )
    return counts


def _levels_of(fit: Fit) -> Ids:
    values = [fit.table.points[axis] for axis in fit.law.axes]
    numbered = [np.unique(axis, return_inverse=True)[1].ravel() for axis in values]
    return np.column_stack(numbered).astype(np.intp)
