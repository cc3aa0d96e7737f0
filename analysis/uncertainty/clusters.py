"""Errors that runs share: all runs of one n, or of one seed, may lie off the law together.

Two answers, to be used where such errors are possible. `clustered_covariance` is the sandwich: the
spread of the clusters' own pulls at the optimum, for which G clusters are G errors and not M.
bootstrap.py draws clusters in the place of runs. A new run brings a shared error of its own, whose
variance is in components.py. Both know of errors only what G clusters can say,
and are too narrow where G is small (docs/math.md).

Legend: M = runs, P = coefficients, G = clusters, F = ways of clustering at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.special import stdtrit

from analysis.errors import TableError
from analysis.fitting.fit import Fit
from analysis.fitting.replicates import cell_ids
from analysis.laws.forms import Array
from analysis.records.table import RunTable
from analysis.uncertainty.components import Components, Ids, in_columns, variance_components
from analysis.uncertainty.doubt import Doubt

By: TypeAlias = Literal["n", "seed", "cell"]
WAYS: tuple[By, ...] = ("n", "seed", "cell")
LEAST_CLUSTERS = 4
Kind: TypeAlias = Literal["CR1", "CR3"]


def cluster_ids(table: RunTable, by: By | tuple[By, ...]) -> Ids:
    """Cluster of each run, int [M]; for several ways at once int [M, F].

    "n": runs of one n; "seed": of one seed; "cell": of one n, k and budget (replicates). TableError
    where a way is unknown or has fewer than LEAST_CLUSTERS clusters.
    """
    if isinstance(by, str):
        return _ids(table, by)
    if not by:
        raise TableError("no way of clustering was named; give one of n, seed, cell.")
    return np.column_stack([_ids(table, way) for way in by])


def _ids(table: RunTable, way: str) -> Ids:
    if way not in WAYS:
        raise TableError(f"clusters {way!r} are not known; give one of {', '.join(WAYS)}.")
    ids = _numbered(table, way)
    n_clusters = len(np.unique(ids))
    if n_clusters < LEAST_CLUSTERS:
        raise TableError(
            f"clusters by {way} need at least {LEAST_CLUSTERS} of them, but the runs to fit have "
            f"{n_clusters}: so few say nothing of the errors they share. Leave --clusters out, or "
            f"add runs at other values of {way}."
        )
    return ids


def _numbered(table: RunTable, way: str) -> Ids:
    if way == "cell":
        return cell_ids(table)
    values = table.seeds if way == "seed" else table.points["n"].tolist()
    return np.unique([str(value) for value in values], return_inverse=True)[1].astype(np.intp)


@dataclass(frozen=True)
class ClusteredCovariance:
    """Covariances that hold for errors shared within clusters; intervals take t of `freedom`."""

    centered: Array  # [P, P], of the coefficients in the fit's centered logs
    named: Array  # [P, P], of the named parameters
    freedom: int  # G - 1, of the way with the fewest clusters
    kind: Kind


def clustered_covariance(fit: Fit, ids: Ids, kind: Kind = "CR3") -> ClusteredCovariance:
    """Cluster-robust covariance of a fit; ids int [M], or [M, F] for errors shared in F ways.

    "CR1" is the usual sandwich with the factor G/(G-1) (M-1)/(M-P). "CR3" takes each cluster's
    residuals as they would be had it not been fitted (Bell and McCaffrey 2002; as the jackknife
    over clusters), which costs nothing and covers better where clusters are few. Several ways add
    up by inclusion and exclusion (Cameron, Gelbach and Miller 2011).
    """
    ways = in_columns(ids)
    total = np.zeros_like(fit.bread)
    for size in range(1, ways.shape[1] + 1):
        for chosen in combinations(range(ways.shape[1]), size):
            joint = np.unique(ways[:, chosen], axis=0, return_inverse=True)[1].ravel()
            total -= (-1) ** size * _one_way(fit, joint, kind)
    total = _no_negative_variance(total)
    freedom = min(len(np.unique(way)) for way in ways.T) - 1
    return ClusteredCovariance(total, fit.to_named @ total @ fit.to_named.T, freedom, kind)


@dataclass(frozen=True)
class Clusters:
    """The clusters of a fit's runs, the covariance that holds for errors they share, and the
    variances of these errors."""

    name: str
    by: tuple[By, ...]
    ids: Ids
    covariance: ClusteredCovariance
    components: Components

    @classmethod
    def of(cls, fit: Fit, by: By | tuple[By, ...], kind: Kind = "CR3") -> Clusters:
        ids = cluster_ids(fit.table, by)
        ways: tuple[By, ...] = (by,) if isinstance(by, str) else by
        covariance = clustered_covariance(fit, ids, kind)
        return cls(" and ".join(ways), ways, ids, covariance, variance_components(fit, ids))

    @property
    def doubt(self) -> Doubt:
        """What intervals take: a new run is in clusters that the fit has not seen."""
        spread = self.covariance
        return Doubt(spread.centered, spread.freedom, self.components.of_new_run)

    def errors_of(self, table: RunTable) -> Array:
        """Covariance [M, M] of the errors of new runs, in clusters that the fit has not seen."""
        return self.components.covariance(
            np.column_stack([_numbered(table, way) for way in self.by])
        )

    def intervals(self, fit: Fit, level: float = 0.95) -> dict[str, tuple[float, float]]:
        return t_intervals(fit, self.covariance.named, self.covariance.freedom, level)

    def json(self, fit: Fit) -> dict[str, Any]:
        named = self.covariance.named
        errors = np.sqrt(np.diag(named)).tolist()
        return {
            "by": self.name,
            "kind": self.covariance.kind,
            "degrees_of_freedom": self.covariance.freedom,
            "se": dict(zip(fit.law.parameter_names, errors, strict=True)),
            "covariance": named.tolist(),
            "ci95": {name: list(interval) for name, interval in self.intervals(fit).items()},
            "variance": self.components.of_new_run,
            "variance_components": {
                "own": self.components.own,
                **dict(zip(self.by, self.components.shared, strict=True)),
            },
        }


def t_intervals(
    fit: Fit, covariance: Array, freedom: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Student's t times the standard error about each named parameter.

    About the log of those that are above 0 by their form (`Law.scales`), so that no end is below.
    """
    half_widths = stdtrit(freedom, 0.5 + level / 2) * np.sqrt(np.diag(covariance))
    pairs = zip(fit.law.parameters.items(), half_widths.tolist(), strict=True)
    return {
        name: _times(value, half) if name in fit.law.scales else (value - half, value + half)
        for (name, value), half in pairs
    }


def _times(value: float, half_width: float) -> tuple[float, float]:
    """Ends about the log of a value above 0: a standard error of its log is its error over it."""
    with np.errstate(all="ignore"):  # a value that rounds to 0, an end beyond every float
        factor = np.exp(np.float64(half_width) / np.float64(value))
        return float(value / factor), float(value * factor)


def _one_way(fit: Fit, ids: Ids, kind: Kind) -> Array:
    n_runs, n_parameters = fit.jacobian.shape
    bread, pulls = fit.bread, fit.clipped
    n_clusters = len(np.unique(ids))
    meat = np.zeros_like(bread)
    for cluster in range(n_clusters):
        of_cluster = fit.jacobian[ids == cluster]
        residuals = pulls[ids == cluster]
        if kind == "CR3":
            left = np.eye(len(residuals)) - of_cluster @ bread @ of_cluster.T
            residuals = np.linalg.pinv(left, rcond=1e-8, hermitian=True) @ residuals
        score = of_cluster.T @ residuals
        meat += np.outer(score, score)
    factor = (
        (n_clusters - 1) / n_clusters
        if kind == "CR3"
        else n_clusters / (n_clusters - 1) * (n_runs - 1) / (n_runs - n_parameters)
    )
    covariance = factor / fit.share_unclipped**2 * bread @ meat @ bread
    return np.asarray(covariance, dtype=np.float64)


def _no_negative_variance(matrix: Array) -> Array:
    """Inclusion and exclusion may leave a direction below zero; it is set to zero there."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T, dtype=np.float64)
