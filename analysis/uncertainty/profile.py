"""How large can the floor be, how small? Profile likelihood, which needs no symmetry.

The log of a floor has no lower end where the runs fit without one, and its standard error then
means nothing. The profile asks directly: with the floor HELD at a value and all else fitted anew,
how much worse is the fit? Values for which the sum of squares rises by less than t^2 s^2 are the
interval; where even no floor at all is among them, its lower end is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, least_squares
from scipy.special import stdtrit

from analysis.errors import TableError
from analysis.fitting.batched import huber_loss
from analysis.fitting.fit import Fit
from analysis.laws.forms import Array, Design
from analysis.laws.law import Law, logs_of

# A floor this small a share of the lowest loss moves no prediction: it stands for none.
_NO_FLOOR = 1e-6
_STEP = 0.25  # of the log of the floor, while looking for an end
_MOST_STEPS = 60
_TOLERANCE = 1e-12
_ROOT = 1e-6  # of the log of the floor


@dataclass(frozen=True)
class FloorInterval:
    """The floor of a law in units of loss; `low` is 0 where the runs fit as well without one."""

    at: dict[str, float]
    floor: float
    low: float
    high: float
    level: float


def floor_interval(
    fit: Fit, at: Mapping[str, float] | None = None, level: float = 0.95
) -> FloorInterval:
    """Interval of the floor at sizes such as {"k": 32} (none for a floor that is one number).

    TableError where the law has no floor, or its floor needs a size that is not given.
    """
    profile = _Profile.of(fit, dict(at or {}))
    threshold = float(stdtrit(fit.degrees_of_freedom, 0.5 + level / 2)) ** 2
    lowest = np.log(_NO_FLOOR) + float(fit.table.log_loss.min())
    best = max(profile.log_floor, lowest)
    low = _end(profile, best, -_STEP, threshold, lowest)
    high = _end(profile, best, _STEP, threshold, np.inf)
    return FloorInterval(
        at=profile.at,
        floor=float(np.exp(profile.log_floor)),
        low=0.0 if low is None else float(np.exp(low)),
        high=np.inf if high is None else float(np.exp(high)),
        level=level,
    )


def _end(
    profile: _Profile, best: float, step: float, threshold: float, bound: float
) -> float | None:
    """Where the fit becomes worse than the threshold going from the best; None up to the bound."""
    inside, state = best, profile.start
    for _ in range(_MOST_STEPS):
        outside = max(inside + step, bound) if step < 0 else inside + step
        rise, state_there = profile.rise(outside, state)
        if rise > threshold:
            return _root(profile, state, inside, outside, threshold)
        if outside == bound:
            return None
        inside, state = outside, state_there
        step *= 1.3
    return None


def _root(
    profile: _Profile, state: Array, inside: float, outside: float, threshold: float
) -> float:
    def above(log_floor: float) -> float:
        return profile.rise(log_floor, state)[0] - threshold

    root: Any = brentq(above, inside, outside, xtol=_ROOT)
    return float(root)


@dataclass(frozen=True)
class _Profile:
    """The fit in logs centered where the floor is asked for: one coefficient IS its log there."""

    fit: Fit
    at: dict[str, float]
    design: Design
    coefficients: Array  # [P], of the optimum
    column: int
    unit: float  # standard deviation of ln loss that one unit of a residual is

    @classmethod
    def of(cls, fit: Fit, at: dict[str, float]) -> _Profile:
        law = type(fit.law)
        column = law.floor_column
        if column is None:
            raise TableError(f"law {law.name} has no floor to give an interval for.")
        at = _sizes(law, column, at)
        center = {**fit.center, **{axis: float(np.log(size)) for axis, size in at.items()}}
        logs = {a: v - center[a] for a, v in logs_of(fit.table.points, law.axes).items()}
        plain = law.form.uncenter(fit.center) @ fit.centered
        moved = np.asarray(np.linalg.solve(law.form.uncenter(center), plain), dtype=np.float64)
        return cls(fit, at, law.form.design(logs), moved, column, _unit(fit))

    @property
    def log_floor(self) -> float:
        return float(self.coefficients[self.column])

    @property
    def start(self) -> Array:
        return np.delete(self.coefficients, self.column)

    def rise(self, log_floor: float, start: Array) -> tuple[float, Array]:
        """How much worse the fit is with the floor held, in units of s^2, and the other [P-1]."""

        def residuals(others: Array) -> Array:
            value = self.design.log_value(self._with(log_floor, others))
            return (value - self.fit.table.log_loss) / self.unit

        def jacobian(others: Array) -> Array:
            whole = self.design.value_and_jacobian(self._with(log_floor, others))[1]
            return np.delete(whole, self.column, axis=1) / self.unit

        limit = self.fit.huber_limit / self.unit
        robust = np.isfinite(limit)
        result = least_squares(
            residuals,
            start,
            jac=jacobian,  # pyright: ignore[reportArgumentType]
            method="trf" if robust else "lm",
            x_scale="jac",
            loss="huber" if robust else "linear",
            f_scale=limit if robust else 1.0,
            **{"ftol": _TOLERANCE, "xtol": _TOLERANCE, "gtol": _TOLERANCE, "max_nfev": 500},
        )
        best = huber_loss(self.fit.residuals / self.unit, limit).sum()
        return float(huber_loss(residuals(result.x), limit).sum() - best), result.x

    def _with(self, log_floor: float, others: Array) -> Array:
        return np.insert(others, self.column, log_floor)


def _sizes(law: type[Law], column: int, at: dict[str, float]) -> dict[str, float]:
    """The sizes that the law's floor depends on, from `at`."""
    slices = law.form.columns()[0]
    term = next(i for i, where in enumerate(slices) if where.start == column)
    axes = {axis for monomial in law.form.factors[0][term] for axis in monomial}
    missing = sorted(axes - set(at))
    if missing:
        raise TableError(
            f"the floor of law {law.name} depends on {missing[0]}; say at which, for example "
            f"at={{{missing[0]!r}: 32}}."
        )
    return {axis: at[axis] for axis in axes}


def _unit(fit: Fit) -> float:
    """Standard deviation in whose squares a rise of the (robust) cost compares with t^2.

    For Huber's loss the rise is that of least squares times the share of runs not clipped.
    """
    share = float(np.mean(np.abs(fit.residuals) < fit.huber_limit))
    return float(np.sqrt(fit.parameter_variance * share))
