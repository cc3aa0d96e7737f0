"""Numbers with their standard errors: ratios of sums over units that were drawn at random.

    value            sum_u s_u / sum_u c_u
    standard error   sqrt(U / (U - 1) sum_u (s_u - value c_u)^2) / sum_u c_u

by linearization, for U units that are drawn independently of each other: documents, vectors,
latents, tokens or tasks. A plain mean has counts of 1. What is drawn within a unit (tokens of one
context) may depend on each other as it likes. Two numbers of the same units are held against each
other unit by unit, so that what both share does not count as error of their difference.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaling.runs.evaluation_columns import OWN

Floats = NDArray[np.float64]


class StandardError(NamedTuple):
    """Of one number."""

    value: float
    over: str
    """What was drawn: "documents", "tasks", ..."""


class Baseline(NamedTuple):
    """What a number is to be compared with, on the same units."""

    value: float
    difference: float
    """The run's number minus this."""
    standard_error: float | None
    """Of the difference; None of one unit, or where the units are not the same."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """See the module. `sums` and `counts` are of the same units, float64 [U]."""

    sums_U: Floats
    counts_U: Floats
    over: str

    @classmethod
    def ratio(cls, sums: ArrayLike, counts: ArrayLike, over: str) -> Estimate:
        return cls(np.asarray(sums, np.float64), np.asarray(counts, np.float64), over)

    @classmethod
    def mean(cls, values: ArrayLike, over: str) -> Estimate:
        """Of one value per unit; NaN: not defined for that one, which is left out."""
        values_U = np.asarray(values, np.float64)
        defined_U = ~np.isnan(values_U)
        return cls(np.where(defined_U, values_U, 0.0), defined_U.astype(np.float64), over)

    @classmethod
    def grouped(
        cls, values: ArrayLike, units: Sequence[Any] | NDArray[Any], n_units: int, over: str
    ) -> Estimate:
        """The mean of many values, each of the unit (from 0 to n_units - 1) given beside it; NaN:
        not defined, and left out. A unit may have none, the last one too: then it still stands
        beside the same unit of other numbers."""
        values_V = np.asarray(values, np.float64)
        units_V = np.asarray(units, np.int64)
        defined_V = ~np.isnan(values_V)
        here = units_V[defined_V]
        sums_U = np.bincount(here, values_V[defined_V], n_units)
        return cls.ratio(sums_U, np.bincount(here, minlength=n_units), over)

    def joined(self, of: NDArray[Any], over: str) -> Estimate:
        """The same number as of larger units, such as documents of contexts; `of` says which each
        is of, [U]."""
        _, unit_U = np.unique(of, return_inverse=True)
        sums_U, counts_U = (np.bincount(unit_U, one) for one in (self.sums_U, self.counts_U))
        return Estimate.ratio(sums_U, counts_U, over)

    def among(self, there_V: NDArray[np.bool_]) -> Estimate:
        """The same number with a place for units that were left out, where they were drawn: `there`
        says which of the V units drawn these are, in their order."""
        sums_V, counts_V = np.zeros(len(there_V)), np.zeros(len(there_V))
        sums_V[there_V], counts_V[there_V] = self.sums_U, self.counts_U
        return Estimate.ratio(sums_V, counts_V, self.over)

    @cached_property
    def value(self) -> float | None:
        """None where there is nothing to divide by."""
        total = float(self.counts_U.sum())
        return float(self.sums_U.sum()) / total if total else None

    @property
    def standard_error(self) -> float | None:
        """None of fewer than two units."""
        return None if self.value is None else _spread(self._moved_U, self._there_U)

    def against(self, other: Estimate) -> Baseline | None:
        """This number beside another of the same units; None where either is not defined."""
        if self.value is None or other.value is None:
            return None
        paired = len(self.sums_U) == len(other.sums_U) and self.over == other.over
        error = (
            _spread(self._moved_U - other._moved_U, self._there_U | other._there_U)
            if paired
            else None
        )
        return Baseline(other.value, self.value - other.value, error)

    @property
    def draws_U(self) -> Floats | None:
        """What each unit moves the value by, for whoever compares runs of the same units; None
        where the units are the run's own, or there is no value."""
        is_shared = self.over not in OWN and self.value is not None
        return self._moved_U if is_shared else None

    @property
    def _there_U(self) -> NDArray[np.bool_]:
        """Units without a sum or a count say nothing."""
        return (self.counts_U != 0) | (self.sums_U != 0)

    @property
    def _moved_U(self) -> Floats:
        """What each unit moves the value by."""
        return (self.sums_U - (self.value or 0.0) * self.counts_U) / self.counts_U.sum()


def _spread(moved_U: Floats, there_U: NDArray[np.bool_]) -> float | None:
    n_units = int(there_U.sum())
    return float(np.sqrt((moved_U**2).sum() * n_units / (n_units - 1))) if n_units > 1 else None
