"""Runs that differ in their sparsity alone, as series: the points of a curve of loss against L0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.counts import short_count
from analysis.errors import TableError
from analysis.laws.forms import Array
from analysis.records.columns import budgets, is_number, numbers

ARCHITECTURE = "autoencoder"
TUNED = ("lr", "batch_tokens")
"""What may be tuned for each arm: runs of several values are read apart, and the best counts."""
SETTINGS = ("k", "penalty", "target_l0")
"""What sets the sparsity of a run; two runs of a series differ in one of these."""


class Place(NamedTuple):
    """What the runs of a series share, but for the seed."""

    arm: str  # value of the compared columns, such as "relu"
    n_latents: int
    tuned: tuple[float | None, ...]  # values of TUNED; None where not recorded


@dataclass(frozen=True)
class Series:
    place: Place
    seed: float | None
    l0: Array  # [P] measured, ascending
    loss: Array  # [P] normalized MSE


@dataclass(frozen=True)
class Chosen:
    """The series of one token budget, of which alone losses are compared."""

    series: list[Series]
    budget: float
    left_out: int  # usable runs of other budgets
    by: tuple[str, ...]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(series.place.arm for series in self.series))

    @property
    def sizes(self) -> list[int]:
        return sorted({series.place.n_latents for series in self.series})


def series_of(
    frame: pd.DataFrame, by: Sequence[str] = (ARCHITECTURE,), budget: float | None = None
) -> Chosen:
    """Usable runs of `load_runs` by arm, n, tuned values and seed.

    Args:
        frame: columns as in `load_runs`.
        by: columns whose values are compared; together they are the arm.
        budget: training tokens of the runs compared; None: the budget that most runs have.

    Raises:
        TableError: no run is usable or measured L0; a column of `by` is missing; no run has the
            budget; two runs of a series agree in k, penalty and target L0.
    """
    used = _measured(frame, by)
    tokens = budgets(used)
    chosen = _budget(tokens, budget)
    rows = used.loc[tokens == chosen].sort_values("l0", kind="stable")
    keys = [_arms(rows, by), numbers(rows, "n_latents"), *(_rounded(rows, c) for c in TUNED)]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, key in enumerate(zip(*keys, numbers(rows, "seed"), strict=True)):
        # A NaN is no key, as none equals another.
        groups.setdefault(tuple(None if v != v else v for v in key), []).append(place)
    _refuse_unexplained(rows, groups, by)
    l0, loss = numbers(rows, "l0"), numbers(rows, "loss")
    found = [
        Series(Place(key[0], int(key[1]), key[2:-1]), key[-1], l0[places], loss[places])
        for key, places in groups.items()
    ]
    found.sort(key=lambda series: (series.place.arm, series.place.n_latents))
    return Chosen(found, chosen, len(used) - len(rows), tuple(by))


def _measured(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Usable rows with measured L0. TableError where there is none."""
    used = frame.loc[frame["excluded"] == ""]
    used = used.loc[numbers(used, "l0") > 0]
    if used.empty:
        raise TableError(
            f"none of the {len(frame)} runs is usable and has a measured l0, at which they would "
            "be compared; finish the sweep by calling it again, then repeat this."
        )
    missing = [name for name in by if name not in used]
    if missing:
        raise TableError(
            f"--by {missing[0]} is no column of these runs; they have {', '.join(used.columns)}."
        )
    return used


def _budget(tokens: Array, asked: float | None) -> float:
    """TableError where no run has the budget asked for."""
    counts = Counter(tokens.tolist())
    if asked is None:
        return max(counts, key=lambda budget: (counts[budget], budget))
    near = [budget for budget in counts if abs(budget / asked - 1.0) < 0.01]
    if not near:
        found = ", ".join(short_count(budget) for budget in sorted(counts))
        raise TableError(f"--tokens {short_count(asked)} leaves no run; there are runs of {found}.")
    return near[0]


def _arms(rows: pd.DataFrame, by: Sequence[str]) -> list[str]:
    columns = [[_text(value) for value in rows[name]] for name in by]
    return [", ".join(values) for values in zip(*columns, strict=True)]


def _text(value: Any) -> str:
    if value is None or value != value:
        return "not recorded"
    return f"{value:g}" if is_number(value) and not isinstance(value, bool) else str(value)


def _rounded(rows: pd.DataFrame, column: str) -> list[float]:
    """Rates are products of powers: equal ones may differ in their last digits."""
    return [float(f"{value:.9g}") for value in numbers(rows, column)]


def _refuse_unexplained(
    rows: pd.DataFrame, groups: dict[tuple[Any, ...], list[int]], by: Sequence[str]
) -> None:
    """A curve through runs that differ in more than their sparsity would be of nothing."""
    settings = np.column_stack([numbers(rows, name) for name in SETTINGS])
    names = rows["run_id"].tolist()
    for places in groups.values():
        seen: dict[tuple[float | None, ...], int] = {}
        for place in places:
            values = tuple(None if v != v else v for v in settings[place].tolist())
            if any(v is not None for v in values) and values in seen:
                raise TableError(
                    f"runs {names[seen[values]]} and {names[place]} agree in {', '.join(by)}, n, "
                    "tokens, learning rate, batch, seed, k, penalty and target L0, so they differ "
                    "in something else, and no one curve goes through both. Name the column in "
                    "which they differ with --by, or keep them in folders of their own."
                )
            seen.setdefault(values, place)
