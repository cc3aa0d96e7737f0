"""What the scatter of seeds says of a mean of ln loss, and of a difference of two means.

The scatter is pooled over places (sizes, cells): s^2 with sum (S - 1) degrees of freedom. So two or
three seeds a place, which alone would give intervals of little use, are enough together; it assumes
that the relative scatter is the same at each place. With one seed everywhere nothing is known.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

UPPER = 0.975
"""Where a 95% interval ends."""

BySeed = Mapping[float | None, float]
"""ln loss of each seed at one place."""


class Noise(NamedTuple):
    """Variance of ln loss from seed to seed, and its degrees of freedom."""

    variance: float
    freedom: float

    def squared(self, n_seeds: float) -> float:
        """Square of a 95% half-width of the mean of so many seeds."""
        return float(stdtrit(self.freedom, UPPER)) ** 2 * self.variance / n_seeds


class Bounds(NamedTuple):
    """Ends of a 95% interval."""

    low: float
    high: float


def ends_text(ends: Bounds | None, form: str) -> str:
    """ "0.2512 to 0.2604" with `form` "{:.4g}"; words where too few seeds give no interval."""
    return "not known" if ends is None else " to ".join(form.format(end) for end in ends)


@dataclass(frozen=True)
class Difference:
    """ln loss less that of a reference, at one place."""

    value: float
    interval: Bounds | None  # None: too few seeds for one

    @property
    def share(self) -> float:
        """Relative: 0.1 is a loss 10% above the reference's."""
        return float(np.expm1(self.value))

    @property
    def share_interval(self) -> Bounds | None:
        return Bounds(*np.expm1(self.interval).tolist()) if self.interval else None


def pooled(samples: Iterable[Iterable[float]]) -> Noise | None:
    """Over samples, each about its own mean; None where none has two values."""
    several = [values for s in samples if len(values := np.array([*s], dtype=np.float64)) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in several)
    return Noise(squares / freedom, float(freedom)) if freedom else None


def mean_interval(seeds: BySeed, noise: Noise | None, doubt: float = 0.0) -> Bounds | None:
    """95% interval of the loss (not its log) behind `seeds`; `doubt`, in ln loss, widens it."""
    if noise is None:
        return None
    mean = float(np.mean([*seeds.values()]))
    half = float(np.hypot(np.sqrt(noise.squared(len(seeds))), doubt))
    return Bounds(float(np.exp(mean - half)), float(np.exp(mean + half)))


def difference(
    ours: Mapping[Hashable, BySeed],
    reference: Mapping[Hashable, BySeed],
    at: Hashable,
    doubt: float = 0.0,
) -> Difference:
    """Of ours to the reference's at one place; the other places are there to pool over.

    Paired by seed where two seeds or more are shared there, for what a seed brings about in both
    cancels; else with Welch's (1947) approximation.
    """
    pairs = {place: _shared(ours[place], reference[place]) for place in ours if place in reference}
    noise, here = pooled(pairs.values()), pairs[at]
    if noise is not None and len(here) > 1:
        return _difference(float(np.mean(here)), noise.squared(len(here)), doubt)
    value = float(np.mean([*ours[at].values()]) - np.mean([*reference[at].values()]))
    a, b = (pooled(seeds.values() for seeds in each.values()) for each in (ours, reference))
    if a is None or b is None:
        return Difference(value, None)
    welch = _welch(a, len(ours[at]), b, len(reference[at]))
    return _difference(value, welch.squared(1), doubt)


def _shared(ours: BySeed, reference: BySeed) -> list[float]:
    return [ours[seed] - reference[seed] for seed in ours if seed in reference]


def _welch(a: Noise, n_a: int, b: Noise, n_b: int) -> Noise:
    """Variance of a difference of two means, and its degrees of freedom."""
    parts = a.variance / n_a, b.variance / n_b
    total = sum(parts)
    if total == 0.0:
        return Noise(0.0, min(a.freedom, b.freedom))
    return Noise(total, total**2 / (parts[0] ** 2 / a.freedom + parts[1] ** 2 / b.freedom))


def _difference(value: float, squared: float, doubt: float) -> Difference:
    half = float(np.sqrt(squared + doubt**2))
    return Difference(value, Bounds(value - half, value + half))
