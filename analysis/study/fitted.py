"""A law fitted, bootstrapped, judged and warned about: what a user takes away from a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from analysis.counts import short_count
from analysis.errors import TableError
from analysis.fitting.checks import check_usable, one_budget
from analysis.fitting.fit import Fit, fit_law, middle_sizes
from analysis.fitting.frontier import fitted_rows, without_beaten
from analysis.judgement.cautions import cautions
from analysis.judgement.holdout import Holdout, Interval, judge, prediction_interval
from analysis.laws.forms import Points
from analysis.laws.law import Law
from analysis.records.table import RunTable
from analysis.uncertainty.bootstrap import Refits, bootstrap

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FittedLaw:
    title: str  # for example "L(n,k | D=500k)"
    rows: str  # which runs it was fitted on, in words
    fit: Fit
    refits: Refits | None  # None: no bootstrap, intervals from standard errors
    holdout: Holdout | None
    warnings: dict[str, str] = field(default_factory=dict)  # code -> message

    @property
    def law(self) -> Law:
        return self.fit.law

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """Percentile bootstrap intervals, or Student's t times the standard error without one."""
        if self.refits is not None:
            return self.refits.parameter_intervals()
        t = float(stdtrit(self.fit.degrees_of_freedom, 0.975))
        errors = self.fit.standard_errors
        return {p: (v - t * errors[p], v + t * errors[p]) for p, v in self.law.parameters.items()}

    def band(self, points: Points) -> Interval:
        """95% interval of the law itself (without run noise) at points."""
        if self.refits is not None:
            return self.refits.band(points)
        return prediction_interval(self.fit, points, noise=False)


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
) -> FittedLaw:
    """Fit `law` to the rows not held out and judge it on the others.

    `context` holds further runs (other budgets) from which convergence is judged; it defaults to
    the table. `reference` are the sizes at which D0 and u are stated, by default the middle of
    the table. TableError where the table cannot determine the law.
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
    fit = fit_law(law, kept, reference or middle_sizes(table))
    refits = bootstrap(fit, n_bootstrap, seed) if n_bootstrap else None
    holdout = None if held_out is None else judge(fit, table.select(held_out))
    warnings = cautions(fit, refits, table if context is None else context)
    return FittedLaw(title_of(law, table), rows, fit, refits, holdout, warnings)


def title_of(law: type[Law], table: RunTable) -> str:
    """The law's title; a law without tokens names the one budget of its runs: L(n,k | D=500k)."""
    budget = one_budget(table)
    if "tokens" in law.axes or budget is None:
        return law.title
    return f"{law.title[:-1]} | D={short_count(budget)})"


def to_json(fitted: FittedLaw) -> dict[str, Any]:
    """The documented JSON object of a fitted law (docs/laws.md); no NaN and no infinity."""
    fit = fitted.fit
    names = fit.law.parameter_names
    known = fit.full_rank
    return {
        "schema_version": SCHEMA_VERSION,
        "law": fit.law.name,
        "title": fitted.title,
        "rows": fitted.rows,
        "loss": fit.table.loss_name,
        "params": {p: finite(v) for p, v in fit.law.parameters.items()},
        "reference": fit.law.reference,
        "units": {p: fit.law.units.get(p, "") for p in names},
        "se": {p: finite(v) if known else None for p, v in fit.standard_errors.items()},
        "ci95": {p: [finite(low), finite(high)] for p, (low, high) in fitted.ci95.items()},
        "ci95_method": _interval_method(fitted),
        "covariance": [[finite(v) for v in row] for row in fit.covariance] if known else None,
        "covariance_order": list(names),
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


def _interval_method(fitted: FittedLaw) -> str:
    if fitted.refits is None:
        return "student t times se"
    return f"percentile bootstrap over runs, {len(fitted.refits)} refits, seed {fitted.refits.seed}"


def _holdout_json(holdout: Holdout | None) -> dict[str, Any] | None:
    if holdout is None:
        return None
    return {
        "rms_log": holdout.rms_log,
        "worst_log": holdout.worst_log,
        "n": len(holdout.table),
        "in_pi95": holdout.in_pi95,
    }
