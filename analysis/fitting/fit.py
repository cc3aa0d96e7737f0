"""A law fitted to log loss, by least squares or Huber's loss: centered logs, many starts, analytic
Jacobian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from scipy.optimize import least_squares

from analysis.errors import TableError
from analysis.fitting import robust
from analysis.fitting.batched import huber_weights
from analysis.fitting.checks import check_usable
from analysis.laws.forms import Array, Design, Points
from analysis.laws.law import Law, logs_of
from analysis.records.table import RunTable

Method: TypeAlias = Literal["least_squares", "huber"]
METHODS: tuple[Method, ...] = ("least_squares", "huber")

# Relative size of the smallest singular value below which the Jacobian has lost a rank: the
# GPT-4 points of the paper are at 2e-2, a plateau without a floor at 1e-9 and less.
RANK_TOLERANCE = 1e-6
_TOLERANCE = 1e-13  # of gradient, step and cost, for an objective scaled to O(1)
_SAME_OPTIMUM = 1e-6  # relative difference of cost


class Start(NamedTuple):
    """What became of one starting point."""

    half_sum_of_squares: float  # of Huber's loss where the fit is robust
    converged: bool
    full_rank: bool
    n_evaluations: int
    is_best: bool  # reached the optimum that was chosen


@dataclass(frozen=True)
class Fit:
    """A fitted law. M rows, P parameters; covariances are s^2 (J'J)^-1, s^2 = RSS / (M - P).

    A robust fit has a `scale`, the standard deviation of runs that are no outliers; its s^2 is
    that of fitting/robust.py.
    """

    law: Law
    table: RunTable
    reference: dict[str, float]  # sizes at which D0 and u are stated
    center: dict[str, float]
    centered: Array  # coefficients in centered logs [P]
    residuals: Array  # ln loss - ln prediction [M]
    jacobian: Array  # by the centered coefficients [M, P]
    starts: tuple[Start, ...]
    scale: float | None = None

    @property
    def method(self) -> Method:
        return "least_squares" if self.scale is None else "huber"

    @property
    def huber_limit(self) -> float:
        """Residual beyond which a run weighs less; none for least squares."""
        return np.inf if self.scale is None else robust.limit_of(self.scale)

    @property
    def weights(self) -> Array:
        """What each run weighs in the fit, [M]: 1, or less where a robust fit found it far off."""
        return huber_weights(self.residuals, self.huber_limit)

    @property
    def clipped(self) -> Array:
        """Residuals [M], of runs beyond `huber_limit` that limit: what each pulls with."""
        return np.clip(self.residuals, -self.huber_limit, self.huber_limit)

    @property
    def share_unclipped(self) -> float:
        return float(np.mean(np.abs(self.residuals) < self.huber_limit))

    @property
    def degrees_of_freedom(self) -> int:
        return self.jacobian.shape[0] - self.jacobian.shape[1]

    @property
    def variance(self) -> float:
        """Of ln loss of one run about the law; without the outliers where the fit is robust."""
        if self.scale is not None:
            return self.scale**2
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
    def bread(self) -> Array:
        """(J'J)^-1, [P, P]; the pseudo-inverse where the Jacobian has lost a rank."""
        inverse = np.linalg.pinv(self.jacobian.T @ self.jacobian, hermitian=True)
        return np.asarray(inverse, dtype=np.float64)

    @cached_property
    def tangent(self) -> Array:
        """Orthonormal columns [M, rank] that span the Jacobian's: where ln L can move the fit."""
        left, singular, _ = np.linalg.svd(self.jacobian, full_matrices=False)
        return left[:, singular > RANK_TOLERANCE * singular[0]]

    @cached_property
    def centered_covariance(self) -> Array:
        """[P, P], of the coefficients in centered logs."""
        return self.parameter_variance * self.bread

    @property
    def parameter_variance(self) -> float:
        """s^2 of s^2 (J'J)^-1: the variance, or for a robust fit that of its clipped residuals."""
        if self.scale is None:
            return self.variance
        return robust.parameter_variance(self.clipped, self.share_unclipped, len(self.centered))

    @cached_property
    def covariance(self) -> Array:
        """[P, P] of the named parameters, by the chain rule at the optimum."""
        return self.to_named @ self.centered_covariance @ self.to_named.T

    @cached_property
    def to_named(self) -> Array:
        """[P, P]: d named parameters / d centered coefficients, at the optimum."""
        to_plain = type(self.law).form.uncenter(self.center)
        named = np.linalg.solve(self.law.coefficient_jacobian(), to_plain)
        return np.asarray(named, dtype=np.float64)

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


def fit_law(
    law: type[Law],
    table: RunTable,
    reference: Mapping[str, float] | None = None,
    *,
    method: Method = "least_squares",
) -> Fit:
    """Fit on ln loss. TableError where the table cannot determine the law.

    `reference` are the sizes at which D0 and u are stated; by default the middle of the table.
    They change how the law is written, not the law. `method` "huber" gives runs far from the law
    less weight (fitting/robust.py).
    """
    check_usable(law, table)
    logs = logs_of(table.points, law.axes)
    center = {axis: float(values.mean()) for axis, values in logs.items()}
    centered_logs = {axis: values - center[axis] for axis, values in logs.items()}
    design = law.form.design(centered_logs)
    starts = law.starting_coefficients(centered_logs, table.log_loss)
    best = _best_of(design, table.log_loss, starts, method)
    coefficients = best.coefficients
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
        starts=best.starts,
        scale=best.scale,
    )


def middle_sizes(table: RunTable) -> dict[str, float]:
    """The powers of two nearest to the geometric mean of n and of k."""
    middles = {axis: np.log2(table.points[axis]).mean() for axis in ("n", "k")}
    return {axis: float(2.0 ** np.round(middle)) for axis, middle in middles.items()}


class _Best(NamedTuple):
    coefficients: Array
    starts: tuple[Start, ...]
    scale: float | None


def _best_of(design: Design, log_loss: Array, starts: Array, method: Method) -> _Best:
    """The lowest cost over all starts; of equal ones, the first of full rank."""
    tried, robust_scale = [solve(design, log_loss, start) for start in starts], None
    if method == "huber":
        tried, robust_scale = _made_robust(design, log_loss, tried)
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
    return _Best(best.coefficients, tuple(reports), robust_scale)


def _made_robust(
    design: Design, log_loss: Array, tried: list[Solution]
) -> tuple[list[Solution], float]:
    """Huber's fit from the optimum of every start: outliers may have made the worse one best."""
    usable = [t for t in tried if np.isfinite(t.cost)]
    optima, which = _different(np.array([t.coefficients for t in usable]))
    fits = robust.robust_fits(design, log_loss, optima)
    ranks = [_full_rank(j) for j in design.value_and_jacobian(fits.coefficients)[1]]
    solutions = [
        t._replace(
            coefficients=fits.coefficients[i],
            cost=float(fits.costs[i]),
            converged=bool(fits.settled[i]),
            full_rank=ranks[i],
        )
        for t, i in zip(usable, which, strict=True)
    ]
    return solutions, fits.scale


def _different(coefficients: Array) -> tuple[Array, list[int]]:
    """Rows that differ from all before them, and which of these each row equals."""
    kept: list[Array] = []
    which: list[int] = []
    for row in coefficients:
        equal = (i for i, seen in enumerate(kept) if np.allclose(row, seen, rtol=1e-5, atol=1e-7))
        which.append(next(equal, len(kept)))
        kept += [row] if which[-1] == len(kept) else []
    return np.array(kept), which


class Solution(NamedTuple):
    """Where one start ended."""

    coefficients: Array  # [P]
    cost: float  # half the sum of squares; not finite where the start ran to infinity
    converged: bool
    full_rank: bool
    n_evaluations: int


def solve(design: Design, log_loss: Array, start: Array) -> Solution:
    """Least squares of ln loss [M] from one start [P], by Levenberg and Marquardt."""
    # Scaled to O(1): an objective of 1e-3 would meet absolute tolerances before its optimum.
    scale = float(np.std(log_loss)) or 1.0
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
    return Solution(result.x, cost, converged, _full_rank(result.jac), result.nfev)


def _full_rank(jacobian: Array) -> bool:
    if not np.isfinite(jacobian).all():
        return False
    singular = np.linalg.svd(jacobian, compute_uv=False)
    return bool(singular[-1] > RANK_TOLERANCE * singular[0])
