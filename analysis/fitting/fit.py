"""Least squares of a law on log loss: centered logs, many starts, analytic Jacobian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from analysis.errors import TableError
from analysis.fitting.checks import check_usable
from analysis.laws.forms import Array, Design, Points
from analysis.laws.law import Law, logs_of
from analysis.records.table import RunTable

# Relative size of the smallest singular value below which the Jacobian has lost a rank: the
# GPT-4 points of the paper are at 2e-2, a plateau without a floor at 1e-9 and less.
RANK_TOLERANCE = 1e-6
_TOLERANCE = 1e-13  # of gradient, step and cost, for an objective scaled to O(1)
_SAME_OPTIMUM = 1e-6  # relative difference of cost


class Start(NamedTuple):
    """What became of one starting point."""

    half_sum_of_squares: float
    converged: bool
    full_rank: bool
    n_evaluations: int
    is_best: bool  # reached the optimum that was chosen


@dataclass(frozen=True)
class Fit:
    """A fitted law. M rows, P parameters; covariances are s^2 (J'J)^-1, s^2 = RSS / (M - P)."""

    law: Law
    table: RunTable
    reference: dict[str, float]  # sizes at which D0 and u are stated
    center: dict[str, float]
    centered: Array  # coefficients in centered logs [P]
    residuals: Array  # ln loss - ln prediction [M]
    jacobian: Array  # by the centered coefficients [M, P]
    starts: tuple[Start, ...]

    @property
    def degrees_of_freedom(self) -> int:
        return self.jacobian.shape[0] - self.jacobian.shape[1]

    @property
    def variance(self) -> float:
        return float(self.residuals @ self.residuals) / self.degrees_of_freedom

    @property
    def half_sum_of_squares(self) -> float:
        return 0.5 * float(self.residuals @ self.residuals)

    @property
    def rms_log_residual(self) -> float:
        return float(np.sqrt(np.mean(self.residuals**2)))

    @property
    def full_rank(self) -> bool:
        return _full_rank(self.jacobian)

    @cached_property
    def centered_covariance(self) -> Array:
        """[P, P]; the pseudo-inverse stands in where the Jacobian has lost a rank."""
        inverse = np.linalg.pinv(self.jacobian.T @ self.jacobian, hermitian=True)
        return self.variance * np.asarray(inverse, dtype=np.float64)

    @cached_property
    def covariance(self) -> Array:
        """[P, P] of the named parameters, by the chain rule at the optimum."""
        to_plain = type(self.law).form.uncenter(self.center)
        to_named = np.linalg.solve(self.law.coefficient_jacobian(), to_plain)
        return to_named @ self.centered_covariance @ to_named.T

    @property
    def standard_errors(self) -> dict[str, float]:
        names = self.law.parameter_names
        return dict(zip(names, np.sqrt(np.diag(self.covariance)).tolist(), strict=True))

    def design(self, points: Points) -> Design:
        """The law's linear forms at points, in this fit's centered logs."""
        logs = logs_of(points, self.law.axes)
        return self.law.form.design({a: logs[a] - self.center[a] for a in logs})

    def log_predict(self, points: Points) -> Array:
        return self.design(points).log_value(self.centered)


def fit_law(law: type[Law], table: RunTable, reference: Mapping[str, float] | None = None) -> Fit:
    """Fit by least squares on ln loss. TableError where the table cannot determine the law.

    `reference` are the sizes at which D0 and u are stated; by default the middle of the table.
    They change how the law is written, not the law.
    """
    check_usable(law, table)
    logs = logs_of(table.points, law.axes)
    center = {axis: float(values.mean()) for axis, values in logs.items()}
    centered_logs = {axis: values - center[axis] for axis, values in logs.items()}
    design = law.form.design(centered_logs)
    starts = law.starting_coefficients(centered_logs, table.log_loss)
    coefficients, reports = _best_of(design, table.log_loss, starts)
    value, jacobian = design.value_and_jacobian(coefficients)
    sizes = dict(reference or middle_sizes(table))
    return Fit(
        law=law.from_coefficients(law.form.uncenter(center) @ coefficients, sizes),
        table=table,
        reference=sizes,
        center=center,
        centered=coefficients,
        residuals=table.log_loss - value,
        jacobian=jacobian,
        starts=reports,
    )


def middle_sizes(table: RunTable) -> dict[str, float]:
    """The powers of two nearest to the geometric mean of n and of k."""
    middles = {axis: np.log2(table.points[axis]).mean() for axis in ("n", "k")}
    return {axis: float(2.0 ** np.round(middle)) for axis, middle in middles.items()}


def _best_of(design: Design, log_loss: Array, starts: Array) -> tuple[Array, tuple[Start, ...]]:
    """The lowest cost over all starts; of equal ones, the first of full rank."""
    scale = float(np.std(log_loss)) or 1.0
    tried = [_solve(design, log_loss, start, scale) for start in starts]
    finished = [t for t in tried if t.converged] or tried
    lowest = min(t.cost for t in finished)
    # Costs below rounding (data that lie on the law) count as equal.
    ceiling = lowest * (1.0 + _SAME_OPTIMUM) + len(log_loss) * 1e-28
    equal = [t for t in finished if t.cost <= ceiling]
    best = min(equal, key=lambda t: (not t.full_rank, t.cost))
    if not np.isfinite(best.cost):
        raise TableError(
            "no start of the fit gave a finite loss; check the table for typing errors."
        )
    reports = (
        Start(t.cost, t.converged, t.full_rank, t.n_evaluations, bool(t.cost <= ceiling))
        for t in tried
    )
    return best.coefficients, tuple(reports)


class _Solution(NamedTuple):
    coefficients: Array
    cost: float
    converged: bool
    full_rank: bool
    n_evaluations: int


def _solve(design: Design, log_loss: Array, start: Array, scale: float) -> _Solution:
    # Scaled to O(1): an objective of 1e-3 would meet absolute tolerances before its optimum.
    result = least_squares(
        lambda c: (design.log_value(c) - log_loss) / scale,
        start,
        jac=lambda c: design.value_and_jacobian(c)[1] / scale,  # pyright: ignore[reportArgumentType]
        method="lm",
        x_scale="jac",
        ftol=_TOLERANCE,
        xtol=_TOLERANCE,
        gtol=_TOLERANCE,
        max_nfev=500,
    )
    cost = float(result.cost) * scale**2
    converged = result.status > 0 and bool(np.isfinite(cost))
    return _Solution(result.x, cost, converged, _full_rank(result.jac), result.nfev)


def _full_rank(jacobian: Array) -> bool:
    singular = np.linalg.svd(jacobian, compute_uv=False)
    return bool(singular[-1] > RANK_TOLERANCE * singular[0])
