"""Trends without a law: the mean change per doubling, what each step does, and where it turns.

Along n, and with n and k changed over along k:

    y(n, k) = a_k + b log2 n        least squares over the means of cells, a level for each k

y is ln of the metric where its changes are relative. The 95% interval of b is Student's t with the
residuals' own variance: what a straight line misses widens it, and so does the scatter of seeds.
A second interval is of what was drawn to measure the metric (draw.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from analysis.laws.forms import Array
from analysis.quality.draw import of_draw
from analysis.quality.metrics import Better
from analysis.quality.values import Axis, Cell, Change, Values, change, ends, leaves_zero, steps
from analysis.uncertainty.seeds import UPPER, Bounds


class Turn(NamedTuple):
    """The best cell of a line is inside it, and better than both ends beyond the seeds' scatter."""

    level: float
    """Of the other axis."""
    best: float
    """Of this one."""


@dataclass(frozen=True)
class Trend:
    """Along one axis, in the units of `Values.scaled`."""

    axis: Axis
    slope: float
    """Per doubling."""
    interval: Bounds | None
    """95%; None where the cells leave nothing to judge a line by."""
    draw: Bounds | None
    """95%, of what was drawn to measure the metric; None where that is not known."""
    ends: tuple[tuple[float, Change], ...]
    """From the first cell to the last, by the other axis's level."""
    turns: tuple[Turn, ...]
    counts: Counter[str]
    """Steps to the next cell that are "better" or "worse" ("up" or "down" of what is neither)
    beyond the scatter of seeds, and "within scatter"; where that is not known, by sign alone, or
    "same"."""

    @property
    def is_seen(self) -> bool:
        """Beyond what a line misses and, where it is known, beyond the draw."""
        return leaves_zero(self.interval) and (self.draw is None or leaves_zero(self.draw))


def trend(values: Values, axis: Axis) -> Trend | None:
    """None where no line along the axis has two cells."""
    lines = [cells for _, cells in values.lines(axis) if len(cells) > 1]
    if not lines:
        return None
    x, y = (np.concatenate(parts) for parts in _centered(values, axis, lines))
    slope, interval = _slope(x, y, n_lines=len(lines))
    weights = dict(zip(chain(*lines), (x / (x @ x)).tolist(), strict=True))
    draw = of_draw(values, slope, weights)
    return Trend(
        *(axis, slope, interval, draw, tuple(ends(values, axis)), tuple(turns(values, axis))),
        Counter(_word(values, step) for step in steps(values, axis)),
    )


def _slope(x: Array, y: Array, n_lines: int) -> tuple[float, Bounds | None]:
    """Of coordinates about their means on each line, which is a level for each."""
    squares = float(x @ x)
    slope = float(x @ y) / squares
    freedom = len(x) - n_lines - 1
    if freedom < 1:
        return slope, None
    residuals = y - slope * x
    error = np.sqrt(float(residuals @ residuals) / freedom / squares)
    half = float(stdtrit(freedom, UPPER) * error)
    return slope, Bounds(slope - half, slope + half)


def _centered(
    values: Values, axis: Axis, lines: list[list[Cell]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    x = [np.log2([getattr(cell, axis) for cell in cells]) for cells in lines]
    y = [np.array([values.mean(cell) for cell in cells]) for cells in lines]
    return [line - line.mean() for line in x], [line - line.mean() for line in y]


def turns(values: Values, axis: Axis) -> list[Turn]:
    """On which lines quality has its best inside; none for what is neither better nor worse."""
    if values.quality.better == "":
        return []
    found = [(level, _best_inside(values, cells)) for level, cells in values.lines(axis)]
    return [Turn(level, getattr(best, axis)) for level, best in found if best is not None]


def _best_inside(values: Values, cells: list[Cell]) -> Cell | None:
    better = values.quality.better
    best = min(cells, key=lambda cell: _badness(values.mean(cell), better))
    if best in (cells[0], cells[-1]):
        return None
    beaten = all(change(values, best, end).is_seen for end in (cells[0], cells[-1]))
    return best if beaten else None


def _badness(value: float, better: Better) -> float:
    return {"lower": value, "higher": -value, "nearer 0": abs(value), "": 0.0}[better]


def _word(values: Values, step: Change) -> str:
    better = values.quality.better
    if step.interval is not None and not step.is_seen:
        return "within scatter"
    if step.value == 0.0:
        return "same"
    if better == "":
        return "up" if step.value > 0 else "down"
    before, after = (_badness(values.mean(cell), better) for cell in (step.start, step.end))
    if after == before:  # as far from 0, on the other side
        return "same"
    return "better" if after < before else "worse"
