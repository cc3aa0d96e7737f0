"""Loss against L0 as a curve that only falls, and its value at an L0 between those measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from analysis.laws.forms import Array

NEAR = 0.02
"""This near, relatively, a measured L0 counts as the one asked for: TopK's is its k but for the few
latents that its ReLU cuts off."""
_STEEPEST = 1.0  # of ln loss in ln L0, assumed where one point shows no slope


class Reading(NamedTuple):
    """A curve at one L0."""

    log_loss: float
    doubt: float  # how far another curve through the same points may lie away, in ln loss
    below: float  # the nearest measured L0 at or below
    above: float


@dataclass(frozen=True)
class Curve:
    """Through the points of one series: a monotone cubic (PCHIP) in ln L0 and ln loss."""

    x: Array  # ln L0 [P], strictly ascending
    y: Array  # ln loss [P], never rising
    moved: float  # the largest change of ln loss that made it so

    @classmethod
    def through(cls, l0: Array, loss: Array) -> Curve:
        """`l0`, `loss` [P], above 0. Equal L0s are averaged; rises are pooled until none is left
        (isotonic regression), for a rise is noise, or a run far from converged."""
        x, place = np.unique(np.log(l0), return_inverse=True)
        counts = np.bincount(place).astype(np.float64)
        raw = np.bincount(place, weights=np.log(loss)) / counts
        y = falling(raw, counts)
        return cls(x, y, float(np.abs(y - raw).max()))

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest L0 measured."""
        return float(np.exp(self.x[0])), float(np.exp(self.x[-1]))

    @cached_property
    def _cubic(self) -> PchipInterpolator:
        return PchipInterpolator(self.x, self.y)

    def at(self, l0: float) -> Reading | None:
        """The curve at `l0`; None beyond the L0s measured (and `NEAR` of them).

        The doubt is the difference from straight lines between the points, in ln L0 and ln loss.
        """
        x = float(np.log(l0))
        if len(self.x) == 1 or not self.x[0] <= x <= self.x[-1]:
            return self._beside_an_end(x)
        cubic = float(self._cubic(x))
        straight = float(np.interp(x, self.x, self.y))
        after = int(np.clip(np.searchsorted(self.x, x), 1, len(self.x) - 1))
        at = after if self.x[after] == x else after - 1
        ends = np.exp(self.x[[at, after]])
        return Reading(cubic, abs(cubic - straight), float(ends[0]), float(ends[1]))

    def _beside_an_end(self, x: float) -> Reading | None:
        end = 0 if x < self.x[0] else -1
        step = x - float(self.x[end])
        if abs(step) > np.log1p(NEAR):
            return None
        slope = 0.0
        if len(self.x) > 1:
            rows = [0, 1] if end == 0 else [-2, -1]
            slope = float(np.diff(self.y[rows])[0] / np.diff(self.x[rows])[0])
        known = abs(slope * step) if len(self.x) > 1 else _STEEPEST * abs(step)
        measured = float(np.exp(self.x[end]))
        return Reading(float(self.y[end]) + slope * step, known, measured, measured)


def falling(values: Array, weights: Array) -> Array:
    """The never-rising sequence [P] nearest to `values` in weighted squares: neighbours that rise
    are replaced by their mean (pool adjacent violators; Barlow et al. 1972)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, u, i), (b, v, j) = blocks[-2:]
            blocks[-2:] = [((a * u + b * v) / (u + v), u + v, i + j)]
    return np.repeat([mean for mean, _, _ in blocks], [length for *_, length in blocks])
