"""The floor that each k shows by itself against the floor of the joint law, with intervals.

The joint law is nested in free fits of every k, so an F test says whether tying them together by k
costs more than scatter. Intervals of a slice's floor are profile likelihoods (Bates and Watts 1988,
section 6.1) at the variance of all slices together; their lower end is 0 where no floor fits as
well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri

from analysis.errors import TableError
from analysis.fitting.checks import LEAST_LEVELS
from analysis.fitting.fit import Fit, fit_law
from analysis.judgement.significance import FTest, f_json, is_found
from analysis.judgement.slices import Slice, fit_slice, slice_form
from analysis.uncertainty.doubt import plain_doubt
from analysis.uncertainty.interval import student_interval

_ROUNDING = 1e-9  # residuals of ln loss that are no scatter


@dataclass(frozen=True)
class FloorAt:
    """The floor at one k, in units of loss."""

    k: float
    n_runs: int
    own: float  # of the slice's own fit
    own_interval: tuple[float, float]  # 95%, profile likelihood
    joint: float  # of the joint law
    joint_interval: tuple[float, float]  # 95%, Student's t of its log

    @property
    def joint_outside(self) -> bool:
        return not self.own_interval[0] <= self.joint <= self.own_interval[1]

    def json(self) -> dict[str, Any]:
        """By name; null for an end that is not finite."""
        low, high = self.own_interval
        own = [low, high if np.isfinite(high) else None]
        return {**asdict(self), "own_interval": own, "joint_outside": self.joint_outside}


@dataclass(frozen=True)
class Floors:
    """Of a joint fit: its floor against those of its slices. Empty with a refusal: no test."""

    refusal: str
    slices: tuple[FloorAt, ...] = ()
    skipped: dict[float, str] | None = None  # k -> why it has no slice
    test: FTest | None = None

    @property
    def p(self) -> float | None:
        return None if self.test is None else self.test.p

    @property
    def found(self) -> bool:
        return is_found(self.p)

    @property
    def message(self) -> str:
        if self.test is None:
            return f"Floors of single k cannot be compared: {self.refusal}."
        outside = [f"{floor.k:.0f}" for floor in self.slices if floor.joint_outside]
        where = (
            f"the joint floor lies outside the 95% interval of the slice's own at k = "
            f"{', '.join(outside)}"
            if outside
            else "the joint floor lies inside the 95% interval of every slice's own"
        )
        if self.found:
            return (
                f"Fitted one k at a time, the runs follow other laws than the joint one "
                f"({self.test.text}); {where}. The joint floor then depends on the form chosen, "
                "not on the runs alone: compare rival forms before using it."
            )
        return f"Slices of one k agree with the joint law ({self.test.text}); {where}."

    def json(self) -> dict[str, Any]:
        return {
            **{"found": self.found, "message": self.message},
            "slices": [floor.json() for floor in self.slices],
            "skipped": {f"{k:.0f}": why for k, why in (self.skipped or {}).items()},
            **f_json(self.test),
        }


def floors(fit: Fit) -> Floors:
    """Compare the floor of a joint law in k with the floors of its slices."""
    if fit.law.floor_column is None or "k" not in fit.law.axes:
        return Floors(f"{fit.law.name} has no floor in k")
    if fit.method != "least_squares":
        return Floors("it is of least squares, and this fit is robust; compare the plain one")
    skipped = _too_few(fit)
    levels = [k for k in np.unique(fit.table.points["k"]).tolist() if k not in skipped]
    if len(levels) < LEAST_LEVELS:
        return Floors(f"fewer than {LEAST_LEVELS} k have the runs for a law of their own")
    try:
        joint = _of_levels(fit, levels)
    except TableError as refusal:
        return Floors(f"the joint law does not fit the k that have slices ({refusal})")
    slices = [fit_slice(joint, k) for k in levels]
    squares, freedom = sum(s.sum_of_squares for s in slices), _freedom(slices)
    if squares < len(joint.table) * _ROUNDING**2:
        return Floors("the runs lie on their slices exactly")
    saved = joint.degrees_of_freedom - freedom
    f = (2.0 * joint.half_sum_of_squares - squares) / saved / (squares / freedom)
    return Floors(
        refusal="",
        slices=tuple(_floor_at(joint, s, squares / freedom, freedom) for s in slices),
        skipped=skipped,
        test=FTest(f, (float(saved), float(freedom))),
    )


def _too_few(fit: Fit) -> dict[float, str]:
    """k -> why its runs have no law of their own."""
    assert fit.law.floor_column is not None
    needed = len(slice_form(fit.law.form, fit.law.floor_column).form.monomials) + 1
    points, found = fit.table.points, {}
    for k in np.unique(points["k"]).tolist():
        rows = points["k"] == k
        few = [a for a in fit.law.axes if a != "k" and _n_levels(points[a][rows]) < LEAST_LEVELS]
        if rows.sum() < needed:
            found[k] = f"{rows.sum()} runs, {needed} needed"
        elif few:
            found[k] = f"fewer than {LEAST_LEVELS} levels of {few[0]}"
    return found


def _n_levels(values: NDArray[np.float64]) -> int:
    return len(np.unique(values))


def _of_levels(fit: Fit, levels: list[float]) -> Fit:
    """The joint fit of the runs at these k alone: the F test needs the same runs on both sides."""
    rows = np.isin(fit.table.points["k"], levels)
    if rows.all():
        return fit
    return fit_law(type(fit.law), fit.table.select(rows), fit.reference)


def _freedom(slices: Iterable[Slice]) -> int:
    return sum(s.degrees_of_freedom for s in slices)


def _floor_at(joint: Fit, own: Slice, variance: float, freedom: int) -> FloorAt:
    log_k = float(np.log(own.k)) - joint.center["k"]
    gradient = own.shape.floor_gradient(log_k)
    level = gradient @ joint.centered
    doubt = plain_doubt(joint)
    low, high = student_interval(level, doubt.at(gradient[None])[0], doubt.freedom)
    return FloorAt(
        k=own.k,
        n_runs=len(own.log_loss),
        own=own.floor,
        own_interval=own.floor_interval(variance * float(fdtri(1, freedom, 0.95))),
        joint=float(np.exp(level)),
        joint_interval=(float(low), float(high)),
    )
