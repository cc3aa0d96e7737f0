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
_LEAST_UNIT = 1e-10  # of ln loss: runs that lie on the law exactly scatter by rounding


@dataclass(frozen=True)
class FloorInterval:
    """The floor of a law in units of loss; `low` is 0 where the runs fit as well without one."""

    at: dict[str, float]
    floor: float
    low: float
    high: float
    level: float

    @property
    def text(self) -> str:
        where = "".join(f" at {axis} = {size:g}" for axis, size in self.at.items())
        return f"floor{where}: {self.floor:.4g}, {self.level:.0%} [{self.low:.4g}, {self.high:.4g}]"

    def json(self) -> dict[str, Any]:
        """By name; null for an end that is not finite."""
        high = self.high if np.isfinite(self.high) else None
        ends = {"floor": self.floor, "low": self.low, "high": high, "level": self.level}
        return {"at": self.at, **ends}


def floor_interval(
    fit: Fit, at: Mapping[str, float] | None = None, level: float = 0.95
) -> FloorInterval:
    """Interval of the floor at sizes such as {"k": 32} (none for a floor that is one number).

    TableError where the law has no floor, or its floor needs a size that is not given.
    """
    profile, at = _profile_of(fit, dict(at or {}))
    low, high = profile.ends(float(stdtrit(fit.degrees_of_freedom, 0.5 + level / 2)) ** 2)
    return FloorInterval(at, float(np.exp(profile.log_floor)), low, high, level)


def floor_intervals(fit: Fit, level: float = 0.95) -> list[FloorInterval]:
    """The floor at each level, among the runs, of the axis that it depends on; one if on none."""
    if fit.law.floor_column is None:
        return []
    axes = _axes_of_floor(type(fit.law), fit.law.floor_column)
    if not axes:
        return [floor_interval(fit, level=level)]
    (axis,) = axes
    levels = np.unique(fit.table.points[axis]).tolist()
    return [floor_interval(fit, {axis: size}, level) for size in levels]


@dataclass(frozen=True)
class FloorProfile:
    """Fits with a floor held at a value, from the optimum of a fit in which ONE coefficient is the
    log of that floor. M runs, P coefficients."""

    design: Design
    log_loss: Array  # [M]
    coefficients: Array  # [P], of the optimum
    column: int
    unit: float  # of ln loss, in whose squares the rise of the cost is counted
    huber_limit: float = np.inf  # residual beyond which the cost is linear

    @property
    def log_floor(self) -> float:
        return float(self.coefficients[self.column])

    @property
    def start(self) -> Array:
        return np.delete(self.coefficients, self.column)

    def ends(self, threshold: float) -> tuple[float, float]:
        """Floors at which the cost has risen by `threshold`; 0 and infinity where it never does.

        A floor of a millionth of the lowest loss stands for none.
        """
        lowest = np.log(_NO_FLOOR) + float(self.log_loss.min())
        best = max(self.log_floor, lowest)
        low = self._end(best, -_STEP, threshold, lowest)
        high = self._end(best, _STEP, threshold, np.inf)
        return (
            0.0 if low is None else float(np.exp(low)),
            np.inf if high is None else float(np.exp(high)),
        )

    def rise(self, log_floor: float, start: Array) -> tuple[float, Array]:
        """How much worse the fit is with the floor held, and its other coefficients [P-1]."""

        def residuals(others: Array) -> Array:
            value = self.design.log_value(self._with(log_floor, others))
            return (value - self.log_loss) / self.unit

        def jacobian(others: Array) -> Array:
            whole = self.design.value_and_jacobian(self._with(log_floor, others))[1]
            return np.delete(whole, self.column, axis=1) / self.unit

        limit = self.huber_limit / self.unit
        robust = np.isfinite(limit)
        with np.errstate(all="ignore"):  # a step may run to infinity; it is then not taken
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
        best = (self.design.log_value(self.coefficients) - self.log_loss) / self.unit
        held = huber_loss(residuals(result.x), limit).sum()
        return float(held - huber_loss(best, limit).sum()), result.x

    def _end(self, best: float, step: float, threshold: float, bound: float) -> float | None:
        """Where the rise passes the threshold, going from the best; None up to the bound."""
        inside, state = best, self.start
        for _ in range(_MOST_STEPS):
            outside = max(inside + step, bound) if step < 0 else inside + step
            rise, state_there = self.rise(outside, state)
            if rise > threshold:
                return self._root(state, inside, outside, threshold)
            if outside == bound:
                return None
            inside, state = outside, state_there
            step *= 1.3
        return None

    def _root(self, state: Array, inside: float, outside: float, threshold: float) -> float:
        def above(log_floor: float) -> float:
            return self.rise(log_floor, state)[0] - threshold

        root: Any = brentq(above, inside, outside, xtol=_ROOT)
        return float(root)

    def _with(self, log_floor: float, others: Array) -> Array:
        return np.insert(others, self.column, log_floor)


def _profile_of(fit: Fit, at: dict[str, float]) -> tuple[FloorProfile, dict[str, float]]:
    """The fit in logs centered where the floor is asked for, and the sizes that this needs."""
    law = type(fit.law)
    column = law.floor_column
    if column is None:
        raise TableError(f"law {law.name} has no floor to give an interval for.")
    at = _sizes(law, column, at)
    center = {**fit.center, **{axis: float(np.log(size)) for axis, size in at.items()}}
    logs = {a: v - center[a] for a, v in logs_of(fit.table.points, law.axes).items()}
    plain = law.form.uncenter(fit.center) @ fit.centered
    moved = np.asarray(np.linalg.solve(law.form.uncenter(center), plain), dtype=np.float64)
    design = law.form.design(logs)
    return FloorProfile(design, fit.table.log_loss, moved, column, _unit(fit), fit.huber_limit), at


def _sizes(law: type[Law], column: int, at: dict[str, float]) -> dict[str, float]:
    """The sizes that the law's floor depends on, from `at`."""
    axes = _axes_of_floor(law, column)
    missing = sorted(axes - set(at))
    if missing:
        raise TableError(
            f"the floor of law {law.name} depends on {missing[0]}; say at which, for example "
            f"at={{{missing[0]!r}: 32}}."
        )
    return {axis: at[axis] for axis in axes}


def _axes_of_floor(law: type[Law], column: int) -> set[str]:
    slices = law.form.columns()[0]
    term = next(i for i, where in enumerate(slices) if where.start == column)
    return {axis for monomial in law.form.factors[0][term] for axis in monomial}


def _unit(fit: Fit) -> float:
    """Standard deviation in whose squares a rise of the (robust) cost compares with t^2.

    For Huber's loss the rise is that of least squares times the share of runs not clipped.
    """
    return max(float(np.sqrt(fit.parameter_variance * fit.share_unclipped)), _LEAST_UNIT)
