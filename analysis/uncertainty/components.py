"""How large are the errors that runs share? Variance components of a fit's residuals.

ln L = law + a shared error of the run's cluster (one for each way of clustering) + the run's own.
A new run at a size that nobody trained brings a shared error of its own, which no covariance of the
coefficients holds. The variances are restricted maximum likelihood (REML) for the law linearized at
the optimum, found by iterating the quadratic unbiased estimates of Rao (1971; Searle, Casella and
McCulloch 1992, chapter 11): quadratic forms of the residuals are set equal to what they would be on
average. None is below zero.

Legend: M = runs, P = coefficients, G = clusters of one way, F = ways of clustering at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from analysis.fitting.fit import Fit
from analysis.laws.forms import Array

Ids: TypeAlias = NDArray[np.intp]
"""Which cluster each run is of: [M], or [M, F] for F ways of clustering."""

_MOST_ROUNDS = 100
_SETTLED = 1e-6  # of the variances' sum
_LEAST_OWN = 1e-6  # of the same: no run is without an error of its own


@dataclass(frozen=True)
class Components:
    """Variances of ln response about the law."""

    own: float  # of each run by itself
    shared: tuple[float, ...]  # one per way of clustering, in their order

    @property
    def of_new_run(self) -> float:
        """Variance of one new run, in clusters that the fit has not seen."""
        return self.own + sum(self.shared)

    def covariance(self, ids: Ids) -> Array:
        """[M, M] of runs whose clusters are `ids`, int [M] or [M, F]."""
        total = self.own * np.eye(len(ids))
        for variance, way in zip(self.shared, in_columns(ids).T, strict=True):
            total += variance * np.equal.outer(way, way)
        return total


def variance_components(fit: Fit, ids: Ids) -> Components:
    """Of a fit's residuals, by clusters `ids` int [M] or [M, F] of its runs.

    A robust fit's residuals are clipped as in its covariance, and scaled back by the share of runs
    that are not: right to a few percent where errors are normal.
    """
    ways = in_columns(ids)
    residuals = fit.clipped / fit.share_unclipped
    size = float(np.sqrt(np.mean(residuals**2)))
    if size == 0.0:
        return Components(0.0, (0.0,) * ways.shape[1])
    forms = _Forms(
        residuals / size,
        fit.tangent,
        [np.equal.outer(way, np.unique(way)).astype(np.float64) for way in ways.T],
    )
    found = forms.variances(np.eye(1, ways.shape[1] + 1)[0])
    for _ in range(_MOST_ROUNDS):
        before, found = found, forms.variances(found)
        if np.abs(found - before).max() <= _SETTLED * found.sum():
            break
    own, *shared = (size**2 * found).tolist()
    return Components(own, tuple(shared))


@dataclass(frozen=True)
class _Forms:
    """Quadratic forms of residuals [M] of a law with the tangent `basis` [M, P]."""

    residuals: Array
    basis: Array
    members: list[Array]  # [M, G] of 0 and 1, one per way

    def variances(self, guess: Array) -> Array:
        """Own and shared variances, [1 + F], of the forms weighted as if `guess` were true.

        With V the covariance by the guess and Q = V^-1 - V^-1 B (B' V^-1 B)^-1 B' V^-1 the forms
        are r'QQr and r'Q Z Z' Q r, Z the members of a way; Q V Q = Q gives the traces with Q alone.
        """
        own, shared = max(float(guess[0]), _LEAST_OWN * float(guess.sum())), guess[1:]
        through = self._through(own, shared)
        of_members = [through(members) for members in self.members]
        pull = through(self.residuals[:, None])[:, 0]
        n_ways = len(self.members)
        means = np.empty((1 + n_ways,) * 2)
        for i, members in enumerate(self.members):
            means[0, i + 1] = means[i + 1, 0] = np.sum(of_members[i] ** 2)
            for j in range(n_ways):
                means[i + 1, j + 1] = np.sum((members.T @ of_members[j]) ** 2)
        pairs = zip(self.members, of_members, strict=True)
        traces = np.array([np.sum(members * passed) for members, passed in pairs])
        n_free = len(self.residuals) - self.basis.shape[1]
        whole_trace = (n_free - shared @ traces) / own
        means[0, 0] = (whole_trace - shared @ means[0, 1:]) / own
        forms = [pull @ pull, *(np.sum((members.T @ pull) ** 2) for members in self.members)]
        return np.asarray(nnls(means, np.array(forms))[0], dtype=np.float64)

    def _through(self, own: float, shared: Array) -> Callable[[Array], Array]:
        """The map x -> Q x for x [M, any], without a matrix of M x M."""
        scaled = np.hstack([np.sqrt(v) * m for v, m in zip(shared, self.members, strict=True)])
        inner = own * np.eye(scaled.shape[1]) + scaled.T @ scaled

        def inverse(right: Array) -> Array:
            return (right - scaled @ np.linalg.solve(inner, scaled.T @ right)) / own

        weighted = inverse(self.basis)
        normal = self.basis.T @ weighted

        def through(right: Array) -> Array:
            return inverse(right) - weighted @ np.linalg.solve(normal, weighted.T @ right)

        return through


def in_columns(ids: Ids) -> Ids:
    """Clusters as [M, F], also of one way [M]."""
    return ids[:, None] if ids.ndim == 1 else ids
