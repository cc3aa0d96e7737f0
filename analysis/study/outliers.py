"""Runs far from the law: listed, and the law refitted without them beside the fit of all runs.

Nothing is dropped by this: both fits are reported, and the reader chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.errors import TableError
from analysis.fitting.fit import Fit
from analysis.fitting.robust import MAD_TO_SD
from analysis.records.table import RunTable
from analysis.study.fitted import FitOptions, FittedLaw

MOST_MAD = 4.0
# Runs that lie on a law to rounding have no outliers.
_LEAST_RESIDUAL = 1e-6
RULE = (
    f"residual of the headline law's fit on all runs beyond {MOST_MAD:g} MAD, a MAD being "
    f"{MAD_TO_SD} times the median absolute residual (one standard deviation of normal errors)"
)


@dataclass(frozen=True)
class Outliers:
    """Of one fit: which runs lie far off, and the same law without them."""

    all_runs: FittedLaw
    mask: NDArray[np.bool_]  # [M]
    without: FittedLaw | None
    refusal: str  # why there is no fit without them

    @property
    def table(self) -> RunTable:
        return self.all_runs.fit.table.select(self.mask)

    def rows(self) -> list[dict[str, Any]]:
        """Run, residual ln(loss / prediction), and its size in MAD."""
        residuals = self.all_runs.fit.residuals
        scale = mad(residuals)
        return [
            {"run": run, "residual_log": float(residual), "mads": float(abs(residual) / scale)}
            for run, residual in zip(self.table.runs, residuals[self.mask], strict=True)
        ]


def mad(residuals: NDArray[np.float64]) -> float:
    """Median absolute residual, scaled to the standard deviation of normal errors.

    Unscaled, it flagged 3 of 56 runs of a planted sweep whose errors were normal.
    """
    return MAD_TO_SD * float(np.median(np.abs(residuals)))


def far_off(fit: Fit) -> NDArray[np.bool_]:
    """Runs whose residual is beyond MOST_MAD, bool [M]."""
    size = np.abs(fit.residuals)
    return size > max(MOST_MAD * mad(fit.residuals), _LEAST_RESIDUAL)


def find_outliers(fitted: FittedLaw, options: FitOptions) -> Outliers | None:
    """Outliers of a fit on all runs with the refit without them; None where there are none."""
    mask = far_off(fitted.fit)
    if not mask.any():
        return None
    table, count = fitted.fit.table, int(mask.sum())
    rows = f"all runs but {count} {'outlier' if count == 1 else 'outliers'}"
    try:
        without = options.fit(
            type(fitted.law),
            table.select(~mask),
            context=table,
            rows=rows,
            reference=fitted.fit.reference,
        )
    except TableError as refusal:
        return Outliers(fitted, mask, None, str(refusal))
    return Outliers(fitted, mask, without, "")


def outliers_json(outliers: Outliers | None) -> dict[str, Any]:
    if outliers is None:
        return {"rule": RULE, "runs": [], "rows_without": None, "refusal": ""}
    return {
        "rule": RULE,
        "runs": outliers.rows(),
        "rows_without": outliers.without.rows if outliers.without else None,
        "refusal": outliers.refusal,
    }
