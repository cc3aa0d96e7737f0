"""The loss of each arm at one L0, by n, and how it compares with a reference arm's.

Each seed's own curve is read at the L0, so that errors that the runs of a seed share stay in the
scatter of seeds, which is pooled over the n of an arm. A mean over S seeds has the 95% interval
+- sqrt(t^2 s^2 / S + doubt^2) in ln loss, doubt being that of the curve between its points
(`curve.Reading`). analysis/uncertainty/seeds.py has the rest.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from analysis.sparsity.curve import Curve, Reading
from analysis.sparsity.series import Chosen, Place, Series
from analysis.uncertainty.seeds import (
    Bounds,
    BySeed,
    Difference,
    Noise,
    difference,
    mean_interval,
    pooled,
)


@dataclass(frozen=True)
class AtL0:
    """One arm at one n, read at one L0; `tuned` as chosen among `tried` for the lowest loss."""

    place: Place
    by_seed: dict[float | None, float]  # ln loss
    doubt: float  # in ln loss, of the curves between their points: the mean over seeds
    below: float  # nearest measured L0s, of all seeds
    above: float
    moved: float  # by which points were moved to make curves fall
    tried: int = 1

    @property
    def log_loss(self) -> float:
        return float(np.mean(list(self.by_seed.values())))

    @property
    def loss(self) -> float:
        return float(np.exp(self.log_loss))


class Outside(NamedTuple):
    """An arm that was not measured around the L0 asked for."""

    place: Place
    low: float  # measured L0s
    high: float


def readings(chosen: Chosen, l0: float) -> tuple[list[AtL0], list[Outside]]:
    """Every arm and n at `l0`: the best of its tuned values, or the L0s it was measured at.

    No value is extrapolated: a seed counts where its runs lie on both sides of `l0`, or near it.
    """
    places = _places(chosen.series)
    found: list[AtL0] = []
    outside: list[Outside] = []
    for same in places.values():
        tried = [at for group in same.values() if (at := _read(group, l0)) is not None]
        if tried:
            best = min(tried, key=lambda at: at.log_loss)
            found.append(replace(best, tried=len(tried)))
        else:
            l0s = np.concatenate([series.l0 for group in same.values() for series in group])
            place = next(iter(same.values()))[0].place
            outside.append(Outside(place, float(l0s.min()), float(l0s.max())))
    return found, outside


def _places(
    series: Sequence[Series],
) -> dict[tuple[str, int], dict[tuple[float | None, ...], list[Series]]]:
    """Series by arm and n, then by tuned values: one list of seeds each."""
    found: dict[tuple[str, int], dict[tuple[float | None, ...], list[Series]]] = {}
    for one in series:
        same = found.setdefault((one.place.arm, one.place.n_latents), {})
        same.setdefault(one.place.tuned, []).append(one)
    return found


def _read(seeds: Sequence[Series], l0: float) -> AtL0 | None:
    """Of the seeds of one place; None where none has runs around `l0`."""
    curves: dict[float | None, Curve] = {
        series.seed: Curve.through(series.l0, series.loss) for series in seeds
    }
    read: dict[float | None, Reading] = {
        seed: at for seed, curve in curves.items() if (at := curve.at(l0)) is not None
    }
    if not read:
        return None
    return AtL0(
        place=seeds[0].place,
        by_seed={seed: at.log_loss for seed, at in read.items()},
        doubt=float(np.mean([at.doubt for at in read.values()])),
        below=min(at.below for at in read.values()),
        above=max(at.above for at in read.values()),
        moved=max(curves[seed].moved for seed in read),
    )


def noise_of(found: Sequence[AtL0], arm: str) -> Noise | None:
    """Pooled over the n of an arm; None where no n has two seeds."""
    return pooled(seeds.values() for seeds in _by_size(found, arm).values())


def interval(at: AtL0, found: Sequence[AtL0]) -> Bounds | None:
    """95% interval of the loss of `at`; `found` has the other n, to pool over."""
    return mean_interval(at.by_seed, noise_of(found, at.place.arm), at.doubt)


def to_reference(at: AtL0, reference: AtL0, found: Sequence[AtL0]) -> Difference:
    """Of one arm to the reference at the same n; `found` has all arms and n, to pool over."""
    ours, theirs = (_by_size(found, one.place.arm) for one in (at, reference))
    return difference(ours, theirs, at.place.n_latents, float(np.hypot(at.doubt, reference.doubt)))


def _by_size(found: Sequence[AtL0], arm: str) -> dict[Hashable, BySeed]:
    return {at.place.n_latents: at.by_seed for at in found if at.place.arm == arm}
