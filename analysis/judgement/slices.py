"""One law, fitted to the runs of a single k: the joint law with its k taken out.

A joint law of n and k says at each k a law of the other axes. Its form there is the joint form with
ln k a number, so its coefficients are sums of the joint ones, and a free fit of the slice can only
come closer to the slice's runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from analysis.fitting.fit import Fit, solve
from analysis.laws.forms import Array, Design, Form, Monomial
from analysis.uncertainty.profile import FloorProfile

_FLOOR_SHARES = (0.02, 0.3, 0.6, 0.85, 0.97)  # of the lowest loss: where fits of a slice begin


class SliceForm(NamedTuple):
    """The form at one k, how its coefficients follow from the joint ones, and its floor."""

    form: Form
    of_joint: tuple[tuple[int, int], ...]  # per joint coefficient: slice column, power of ln k
    floor: int  # column of the log of the floor

    def coefficients(self, joint: Array, log_k: float) -> Array:
        """Slice coefficients [Q] of the joint law [P] at ln k (centered as the joint ones are)."""
        found = np.zeros(len(self.form.monomials))
        for value, (column, power) in zip(joint, self.of_joint, strict=True):
            found[column] += value * log_k**power
        return found

    def floor_gradient(self, log_k: float) -> Array:
        """d ln floor at ln k / d joint coefficients, [P]."""
        return np.array([log_k**p if column == self.floor else 0.0 for column, p in self.of_joint])


def slice_form(form: Form, floor_column: int) -> SliceForm:
    """Take k out of a form; `floor_column` is the constant of the term that is the floor."""
    factors: list[tuple[tuple[Monomial, ...], ...]] = []
    of_joint: list[tuple[int, int]] = []
    column = 0
    for factor in form.factors:
        terms: list[tuple[Monomial, ...]] = []
        for term in factor:
            bare = [tuple(axis for axis in monomial if axis != "k") for monomial in term]
            kept = list(dict.fromkeys(bare))
            pairs = zip(term, bare, strict=True)
            of_joint += [(column + kept.index(rest), whole.count("k")) for whole, rest in pairs]
            column += len(kept)
            terms.append(tuple(kept))
        factors.append(tuple(terms))
    return SliceForm(Form(tuple(factors)), tuple(of_joint), of_joint[floor_column][0])


@dataclass(frozen=True)
class Slice:
    """Runs of one k with the best fit of the slice's own law. Q coefficients, in centered logs."""

    k: float
    shape: SliceForm
    design: Design
    log_loss: Array
    coefficients: Array  # [Q]
    sum_of_squares: float

    @property
    def degrees_of_freedom(self) -> int:
        return len(self.log_loss) - len(self.coefficients)

    @property
    def floor(self) -> float:
        return float(np.exp(self.coefficients[self.shape.floor]))

    def floor_interval(self, allowed: float) -> tuple[float, float]:
        """Floors at which the slice's sum of squares rises by at most `allowed`; [0, high] where no
        floor at all fits that well, infinity where any high one does."""
        return self.profile(float(np.sqrt(allowed))).ends(1.0)

    def profile(self, unit: float) -> FloorProfile:
        """The slice with its floor held; rises are in squares of `unit`, of ln loss."""
        return FloorProfile(self.design, self.log_loss, self.coefficients, self.shape.floor, unit)


def fit_slice(fit: Fit, k: float) -> Slice:
    """Fit the slice at k of a joint fit's runs; starts: the joint law, and floors of many sizes."""
    column = fit.law.floor_column
    assert column is not None
    shape = slice_form(fit.law.form, column)
    part = fit.table.select(fit.table.points["k"] == k)
    axes = [axis for axis in fit.law.axes if axis != "k"]
    logs = {axis: np.log(part.points[axis]) - fit.center[axis] for axis in axes}
    design = shape.form.design(logs)
    implied = shape.coefficients(fit.centered, float(np.log(k)) - fit.center["k"])
    starts = _starts(shape, implied, part.log_loss)
    with np.errstate(all="ignore"):  # a step may run to infinity; it is then not taken
        tried = [solve(design, part.log_loss, start) for start in starts]
    best = min((t for t in tried if np.isfinite(t.cost)), key=lambda found: found.cost)
    return Slice(k, shape, design, part.log_loss, best.coefficients, 2.0 * best.cost)


def _starts(shape: SliceForm, implied: Array, log_loss: Array) -> list[Array]:
    starts = [implied]
    for share in _FLOOR_SHARES:
        starts.append(implied.copy())
        starts[-1][shape.floor] = log_loss.min() + np.log(share)
    return starts
