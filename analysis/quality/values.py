"""The values of one metric over the runs evaluated: cells of n and k, seeds within them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from analysis.laws.forms import Array
from analysis.quality.beside import NOTHING, Beside, beside
from analysis.quality.metrics import Quality
from analysis.records.columns import budgets, numbers
from analysis.uncertainty.seeds import Bounds, Noise, pooled

Axis = Literal["n", "k"]
LARGEST = 1e100
"""Squares of larger values are infinite."""
OTHER: dict[Axis, Axis] = {"n": "k", "k": "n"}


class Cell(NamedTuple):
    """Where runs differ in the seed alone."""

    n: float
    k: float


@dataclass(frozen=True)
class Values:
    """Of one metric, at one token budget."""

    quality: Quality
    tokens: float | None
    """The budget of these runs; None where the records say none."""
    of: dict[Cell, Array]
    """A value per seed, in the column's own unit."""
    runs: pd.DataFrame
    """Columns run, n, k, value, dead: one row per run; dead are those that no law is fitted to."""
    beside: Beside = NOTHING
    """Of the same runs."""

    @property
    def n_runs(self) -> int:
        return len(self.runs)

    @property
    def n_dead(self) -> int:
        return self.runs["dead"].tolist().count(True)

    @property
    def relative(self) -> bool:
        """Whether changes are of ln value: where the metric is read so and all are above 0."""
        return self.quality.relative and bool((self.runs["value"] > 0).all())

    def scaled(self, cell: Cell) -> Array:
        """The seeds' values, or their ln where changes are relative."""
        values = self.of[cell]
        return np.log(values) if self.relative else values

    def mean(self, cell: Cell) -> float:
        return float(self.scaled(cell).mean())

    @cached_property
    def noise(self) -> Noise | None:
        """From seed to seed, pooled over cells; None where no cell has two, or all have equal ones
        to the last digit: copies, or a metric at its end, say nothing of scatter."""
        noise = pooled(self.scaled(cell) for cell in self.of)
        return noise if noise is not None and noise.variance > 0 else None

    def levels(self, axis: Axis) -> list[float]:
        return sorted({getattr(cell, axis) for cell in self.of})

    def lines(self, axis: Axis) -> Iterator[tuple[float, list[Cell]]]:
        """Along `axis`: the other axis's level and its cells in ascending order."""
        other = OTHER[axis]
        for level in self.levels(other):
            cells = [cell for cell in self.of if getattr(cell, other) == level]
            yield level, sorted(cells, key=lambda cell: getattr(cell, axis))


class Change(NamedTuple):
    """From one cell to another, in the units of `Values.scaled`."""

    start: Cell
    end: Cell
    value: float
    interval: Bounds | None
    """95%, of the seeds' scatter; None where it is not known."""

    @property
    def is_seen(self) -> bool:
        """Beyond the scatter of seeds."""
        return leaves_zero(self.interval)


def leaves_zero(interval: Bounds | None) -> bool:
    """Whether there is an interval, and 0 is outside."""
    return interval is not None and not interval.low <= 0.0 <= interval.high


def change(values: Values, start: Cell, end: Cell) -> Change:
    """Of the means of two cells."""
    apart = values.mean(end) - values.mean(start)
    noise = values.noise
    if noise is None:
        return Change(start, end, apart, None)
    seeds = 1.0 / (1.0 / len(values.of[start]) + 1.0 / len(values.of[end]))
    half = float(np.sqrt(noise.squared(seeds)))
    return Change(start, end, apart, Bounds(apart - half, apart + half))


def steps(values: Values, axis: Axis) -> list[Change]:
    """From each cell to the next along `axis`."""
    return [change(values, *pair) for _, cells in values.lines(axis) for pair in pairwise(cells)]


def ends(values: Values, axis: Axis) -> list[tuple[float, Change]]:
    """From the first to the last along `axis`, for each level of the other with at least two."""
    lines = values.lines(axis)
    return [(level, change(values, cells[0], cells[-1])) for level, cells in lines if cells[1:]]


def values_of(frame: pd.DataFrame, quality: Quality, tokens: float | None) -> Values | str:
    """Of the runs in use that were evaluated, all of one token budget; or why there is nothing to
    show ("" where no run was evaluated for it). Columns as in `load_runs`; runs of mostly dead
    latents count."""
    if refusal := _no_numbers(frame, quality):
        return refusal
    value = numbers(frame, quality.column)
    table = pd.DataFrame(
        {
            "run": frame["run_id"].astype(str),
            **{"n": numbers(frame, "n_latents"), "k": numbers(frame, "k")},
            **{"seed": numbers(frame, "seed"), "value": value},
            "dead": (frame["excluded"] != "").to_numpy(),
        }
    )
    evaluated = np.isfinite(table[["n", "k", "value"]]).all(axis=1)
    if not evaluated.any():
        return ""
    if refusal := _mixed(frame.loc[evaluated], quality):
        return refusal
    table = table.loc[evaluated]
    if refusal := _not_seeds(table):
        return refusal
    cells = table.groupby(["n", "k"])["value"]
    of = {Cell(*key): group.to_numpy() for key, group in cells}  # pyright: ignore[reportGeneralTypeIssues]
    of_runs = beside(frame.loc[evaluated], quality)
    return Values(quality, tokens, of, table.drop(columns="seed"), of_runs)


def _no_numbers(frame: pd.DataFrame, quality: Quality) -> str:
    """Why these values are none: one word in a column of a table makes words of all; "" where they
    are."""
    given = frame[quality.column].dropna() if quality.column in frame else pd.Series(dtype=object)
    words = [value for value in given if isinstance(value, str)]
    if words:
        odd = next((word for word in words if not _is_finite(word)), words[0])
        return f"{quality.column} has values that are no numbers, like {odd!r}: mend the table."
    largest = np.abs(numbers(frame, quality.column))
    if (largest[np.isfinite(largest)] > LARGEST).any():
        return f"{quality.column} has values beyond {LARGEST:g}, which no evaluation gives."
    return ""


def _is_finite(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _mixed(evaluated: pd.DataFrame, quality: Quality) -> str:
    """Why these numbers do not compare; "" where they do, or nothing says how they were made."""
    column = f"{quality.metric}_measured_as"
    if column not in evaluated:
        return ""
    ways = evaluated[column].fillna("not recorded").value_counts()
    if len(ways) < 2:
        return ""
    found = ", ".join(f"{way} ({count} runs)" for way, count in ways.items())
    return (
        f"{quality.metric} was measured in several ways: {found}. Other settings, text or tasks "
        "give other numbers; evaluate all runs with one setting."
    )


def _not_seeds(table: pd.DataFrame) -> str:
    """Why runs of one cell differ in more than the seed; "" where nothing says that they do."""
    known = table.loc[np.isfinite(table["seed"])]
    again = known.loc[known.duplicated(["n", "k", "seed"])]
    if again.empty:
        return ""
    first = again.iloc[0]
    place = f"n = {first['n']:g}, k = {first['k']:g} and seed {first['seed']:g}"
    return (
        f"several runs have {place}: they differ in something else (architecture, learning "
        "rate, ...), which is no scatter of seeds. Give runs of one kind."
    )


def at_one_budget(
    frame: pd.DataFrame, qualities: Sequence[Quality]
) -> tuple[pd.DataFrame, float | None, int]:
    """The runs of the token budget at which most was measured (then the larger), that budget (None
    where no record says one), and how many evaluated runs are of others: all metrics of a page are
    of the same runs."""
    measured = np.sum([np.isfinite(numbers(frame, one.column)) for one in qualities], axis=0)
    tokens = budgets(frame)
    known = np.unique(tokens[np.isfinite(tokens) & (measured > 0)]).tolist()
    if not known:
        return frame, None, 0
    best = max(known, key=lambda budget: (int(measured[tokens == budget].sum()), budget))
    return frame.loc[tokens == best], best, int(((tokens != best) & (measured > 0)).sum())
