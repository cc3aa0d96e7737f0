"""A law fitted, bootstrapped, judged and warned about: what a user takes away from a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.counts import short_count
from analysis.errors import TableError
from analysis.fitting.bounds import bounds
from analysis.fitting.checks import check_usable, grows_with_n, one_budget
from analysis.fitting.fit import Fit, Method, fit_law, middle_sizes
from analysis.fitting.frontier import fitted_rows, without_beaten
from analysis.fitting.replicates import pure_error
from analysis.judgement.cautions import cautions
from analysis.judgement.holdout import Holdout, judge
from analysis.laws.forms import Points
from analysis.laws.law import Law
from analysis.records.table import RunTable
from analysis.uncertainty.bootstrap import Refits, bootstrap
from analysis.uncertainty.clusters import By, Clusters, t_intervals
from analysis.uncertainty.doubt import Doubt, plain_doubt, prediction_interval
from analysis.uncertainty.interval import Interval
from analysis.uncertainty.profile import floor_interval

SCHEMA_VERSION = 1
_LIGHT = 0.5  # weight in a robust fit below which a run is listed


@dataclass(frozen=True)
class FittedLaw:
    title: str  # for example "L(n,k | D=500k)"
    rows: str  # which runs it was fitted on, in words
    fit: Fit
    refits: Refits | None  # None: no bootstrap, intervals from standard errors
    holdout: Holdout | None
    warnings: dict[str, str] = field(default_factory=dict)  # code -> message
    clusters: Clusters | None = None  # whose shared errors the intervals hold

    @property
    def law(self) -> Law:
        return self.fit.law

    @property
    def doubt(self) -> Doubt:
        """What intervals are made of where there are no refits: that of the clusters, if any."""
        return plain_doubt(self.fit) if self.clusters is None else self.clusters.doubt

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """Percentile bootstrap intervals, or Student's t times the standard error without one.

        A floor E has its profile interval instead where there is no bootstrap (the log of a floor
        has no symmetric one), and where it moves no prediction: from 0 to what the runs allow.
        """
        return {**self._ci95, **({"E": self._floor_interval} if self.profiled_floor else {})}

    @property
    def no_floor(self) -> bool:
        """The floor E of the law is at its bound: the runs are fitted as well without one."""
        return "E" in bounds(self.fit)

    @property
    def profiled_floor(self) -> bool:
        """The interval of a floor E is by profile likelihood."""
        plain = self.refits is None and self.clusters is None
        return self.no_floor or (plain and "E" in self.law.parameters)

    @cached_property
    def _floor_interval(self) -> tuple[float, float]:
        found = floor_interval(self.fit)
        return (0.0 if self.no_floor else found.low), found.high

    @property
    def _ci95(self) -> dict[str, tuple[float, float]]:
        if self.refits is not None:
            return self.refits.parameter_intervals()
        if self.clusters is not None:
            return self.clusters.intervals(self.fit)
        return t_intervals(self.fit, self.fit.covariance, self.fit.degrees_of_freedom)

    @property
    def ci95_method(self) -> str:
        """How `ci95` was made, in words."""
        return self._ci95_method + ("; E by profile likelihood" if self.profiled_floor else "")

    @property
    def _ci95_method(self) -> str:
        by = None if self.clusters is None else self.clusters.name
        if self.refits is None:
            return "student t times se" + (f", clustered by {by}" if by else "")
        drawn = f"clusters by {by}" if by else "runs"
        refits = self.refits
        return f"percentile bootstrap over {drawn}, {len(refits)} refits, seed {refits.seed}"

    def band(self, points: Points) -> Interval:
        """95% interval of the law itself (without run noise) at points."""
        if self.refits is not None:
            return self.refits.band(points)
        return prediction_interval(self.fit, points, noise=False, doubt=self.doubt)


def fit_table(
    law: type[Law],
    table: RunTable,
    *,
    held_out: NDArray[np.bool_] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    context: RunTable | None = None,
    rows: str = "all runs",
    reference: dict[str, float] | None = None,
    method: Method = "least_squares",
    clusters: By | tuple[By, ...] | None = None,
) -> FittedLaw:
    """Fit `law` to the rows not held out and judge it on the others.

    `context` holds further runs (other budgets) from which convergence is judged; it defaults to
    the table. `reference` are the sizes at which D0 and u are stated, by default the middle of
    the table. `method` "huber" gives runs far from the law less weight. `clusters` ("n", "seed",
    "cell" or several) says which runs may share an error: the bootstrap then draws clusters, and
    a cluster-robust covariance stands beside the plain one and is in the prediction intervals of
    held-out runs, as is the variance of the shared errors. TableError where the table cannot
    determine the law.
    """
    held_out = None if held_out is None else held_out[fitted_rows(law, table)]
    table = without_beaten(law, table)
    check_usable(law, table)
    if held_out is not None and not held_out.any():
        raise TableError(
            f"law {law.name} is of the runs that no cheaper run beats, and no run held out is one; "
            "hold out others."
        )
    kept = table if held_out is None else table.select(~held_out)
    fit = fit_law(law, kept, reference or middle_sizes(table), method=method)
    shared = None if clusters is None else Clusters.of(fit, clusters)
    ids = None if shared is None else shared.ids
    refits = bootstrap(fit, n_bootstrap, seed, ids) if n_bootstrap else None
    doubt = None if shared is None else shared.doubt
    holdout = None if held_out is None else judge(fit, table.select(held_out), doubt)
    warnings = cautions(fit, refits, table if context is None else context)
    return FittedLaw(title_of(law, table), rows, fit, refits, holdout, warnings, shared)


@dataclass(frozen=True)
class FitOptions:
    """How every law of a study is fitted: see fit_table."""

    n_bootstrap: int = 1000
    seed: int = 0
    method: Method = "least_squares"
    clusters: By | tuple[By, ...] | None = None

    def fit(
        self,
        law: type[Law],
        table: RunTable,
        *,
        context: RunTable,
        rows: str,
        held_out: NDArray[np.bool_] | None = None,
        reference: dict[str, float] | None = None,
    ) -> FittedLaw:
        return fit_table(
            law,
            table,
            held_out=held_out,
            context=context,
            rows=rows,
            reference=reference,
            **vars(self),
        )


DEFAULTS = FitOptions()


def title_of(law: type[Law], table: RunTable) -> str:
    """The law's title; a law without tokens names the budget of its runs: L(n,k | D=500k).

    L(n,k | D*(n)) where each n has its own budget; the plain title where runs are shown converged.
    """
    budget = one_budget(table)
    if "tokens" in law.axes or law.response != "loss" or table.shown_converged:
        return law.title
    if budget is not None:
        return _given(law, f"D={short_count(budget)}")
    tied = "tokens" in law.constant_axes and grows_with_n(table)
    return _given(law, "D*(n)") if tied else law.title


def _given(law: type[Law], budget: str) -> str:
    """Into the arguments, not at the end: titles of rivals go on after them, as in L(n,k), no
    gamma."""
    return law.title.replace(")", f" | {budget})", 1)


def to_json(fitted: FittedLaw) -> dict[str, Any]:
    """The documented JSON object of a fitted law (docs/laws.md); no NaN and no infinity."""
    fit = fitted.fit
    names = fit.law.parameter_names
    known = fit.full_rank
    return {
        "schema_version": SCHEMA_VERSION,
        "law": fit.law.name,
        "title": fitted.title,
        "method": fit.method,
        "rows": fitted.rows,
        "loss": fit.table.loss_name,
        "params": {p: finite(v) for p, v in fit.law.parameters.items()},
        "reference": fit.law.reference,
        "units": {p: fit.law.units.get(p, "") for p in names},
        "se": {p: finite(v) if known else None for p, v in fit.standard_errors.items()},
        "ci95": {p: [finite(low), finite(high)] for p, (low, high) in fitted.ci95.items()},
        "ci95_method": fitted.ci95_method,
        "covariance": [[finite(v) for v in row] for row in fit.covariance] if known else None,
        "covariance_order": list(names),
        "clustered": fitted.clusters.json(fit) if fitted.clusters and known else None,
        "bounds": bounds(fit),
        "robust": _robust_json(fit),
        "pure_error": _pure_error_json(fit),
        "variance": fit.variance,
        "degrees_of_freedom": fit.degrees_of_freedom,
        "ranges": {axis: [float(v.min()), float(v.max())] for axis, v in fit.table.points.items()},
        "rms_log_residual": fit.rms_log_residual,
        "half_sum_of_squares": fit.half_sum_of_squares,
        "n_used": len(fit.table),
        "dropped": [drop._asdict() for drop in fit.table.dropped],
        "holdout": _holdout_json(fitted.holdout),
        "starts": [start._asdict() for start in fit.starts],
        "warnings": list(fitted.warnings),
        "warning_messages": fitted.warnings,
    }


def finite(value: float) -> float | None:
    """JSON has no infinity: null says that the interval is open or the value does not exist."""
    return float(value) if math.isfinite(value) else None


def _robust_json(fit: Fit) -> dict[str, Any] | None:
    """The robust scale and the runs that weigh less than half: beyond 2.7 standard deviations."""
    if fit.scale is None:
        return None
    rows = zip(fit.table.runs, fit.residuals.tolist(), fit.weights.tolist(), strict=True)
    light = [{"run": r, "residual_log": e, "weight": w} for r, e, w in rows if w < _LIGHT]
    return {"scale": fit.scale, "light_runs": light}


def _pure_error_json(fit: Fit) -> dict[str, Any] | None:
    pure = pure_error(fit.table)
    return None if pure is None else pure.json()


def _holdout_json(holdout: Holdout | None) -> dict[str, Any] | None:
    if holdout is None:
        return None
    return {
        "rms_log": holdout.rms_log,
        "worst_log": holdout.worst_log,
        "n": len(holdout.table),
        "in_pi95": holdout.in_pi95,
    }
