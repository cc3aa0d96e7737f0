"""Runs that differ in one key, cell by cell: the loss of each level against that of the usual one.

A cell is what the runs compared share: architecture, n, k (or penalty and target L0), token budget
and all other keys that differ in the sweep, but learning rates: each level is taken at the best of
those tried for it. Differences are paired by seed, their scatter pooled over cells.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.ablation.settings import PUBLISHED, RATES, Settings, differing, settings_of
from analysis.counts import short_count
from analysis.records.columns import budgets, numbers
from analysis.records.mixtures import RECIPE
from analysis.records.sparsity import lacks_k
from analysis.uncertainty.seeds import Bounds, Difference, difference, mean_interval, pooled

MOST_RUNS = 0.5
"""Keys are the sweep's question where at least this share of its runs is in a cell of several
levels of one."""
_ORDER = ("autoencoder", "n_latents", "k", "penalty", "target_l0", "tokens")
_MEASURED = ("normalized_mse_ema", "dead_fraction", "l0")


@dataclass(frozen=True)
class Level:
    """The runs of one cell at one level of the key."""

    seeds: dict[float | None, float]  # ln loss
    measured: dict[str, float]  # means over seeds; NaN where no record says it
    runs: tuple[str, ...]
    tuned: str = ""  # the best of several learning rates, in words

    @property
    def loss(self) -> float:
        return float(np.exp(np.mean([*self.seeds.values()])))


@dataclass(frozen=True)
class Ablation:
    key: str  # its full name; several that change as one are joined by " and "
    levels: tuple[str, ...]  # in order
    usual: str  # the level that most runs of the sweep have; differences are to it
    cells: dict[str, dict[str, Level]]  # cell in words -> level -> its runs
    outcome: bool  # sparsity is an outcome: equal penalties are not equal L0s
    level_of: dict[str, str]  # run_id -> level, of runs in cells

    def difference(self, cell: str, level: str) -> Difference | None:
        """To the usual level in this cell; None for that level, or where it has no run."""
        if level == self.usual or self.usual not in self.cells[cell]:
            return None
        return difference(self._at(level), self._at(self.usual), cell)

    def interval(self, cell: str, level: str) -> Bounds | None:
        """95% interval of the loss there; None where no level has a repeated seed."""
        everywhere = (at.seeds.values() for levels in self.cells.values() for at in levels.values())
        return mean_interval(self.cells[cell][level].seeds, pooled(everywhere))

    def _at(self, level: str) -> dict[Hashable, dict[float | None, float]]:
        return {cell: levels[level].seeds for cell, levels in self.cells.items() if level in levels}


def ablations_of(frame: pd.DataFrame) -> list[Ablation]:
    """Every key that is a question of the sweep; none for a sweep over sizes alone.

    Args:
        frame: columns as in `load_runs`; runs may mix what laws may not.
    """
    used = frame.loc[frame["excluded"] == ""]
    if used.empty:
        return []
    # Pages list cells in the order of their runs.
    used = used.sort_values([name for name in _ORDER if name in used], kind="stable")
    settings, sizes = settings_of(used), _sizes(used)
    keys = differing(settings, sizes)
    asked = (_ablation(key, keys, used, settings, sizes) for key in keys)
    found = [one for one in asked if one is not None]
    compared = {run for one in found for run in one.level_of}
    return _joined(found) if len(compared) >= MOST_RUNS * len(used) else []


def columns_explained(found: Sequence[Ablation], frame: pd.DataFrame) -> list[str]:
    """Columns in which runs may not differ on one law, that differ here because a key does: each
    level has one value."""
    used = frame.loc[frame["excluded"] == ""]
    return [
        column
        for column in RECIPE
        if column in used and any(_is_function(used, column, one.level_of) for one in found)
    ]


def _is_function(used: pd.DataFrame, column: str, level_of: dict[str, str]) -> bool:
    values: dict[tuple[str, str], set[str]] = {}
    names = used["autoencoder"] if "autoencoder" in used else [""] * len(used)
    for run, name, value in zip(used["run_id"], names, used[column], strict=True):
        if run in level_of:
            values.setdefault((str(name), level_of[run]), set()).add(str(value))
    return bool(values) and all(len(found) == 1 for found in values.values())


def _sizes(used: pd.DataFrame) -> list[tuple[str, ...]]:
    """The cell of each run but for its keys."""
    names = used["autoencoder"] if "autoencoder" in used else [""] * len(used)
    columns = [[str(name) for name in names], _words("n", numbers(used, "n_latents"))]
    columns += [_words("k", numbers(used, "k")), _words("penalty", numbers(used, "penalty"))]
    columns += [_words("target L0", numbers(used, "target_l0"))]
    tokens = [f"D = {short_count(float(value))}" for value in budgets(used)]
    return list(zip(*columns, tokens, strict=True))


def _words(name: str, values: Any) -> list[str]:
    return [f"{name} = {value:g}" if np.isfinite(value) else "" for value in values]


def _ablation(
    key: str,
    keys: Sequence[str],
    used: pd.DataFrame,
    settings: Sequence[Settings],
    sizes: Sequence[tuple[str, ...]],
) -> Ablation | None:
    """Of one key; None where no cell has two of its levels, all other keys being equal."""
    tuned = [] if key in RATES else [rate for rate in RATES if rate in keys]
    rest = [other for other in keys if other != key and other not in tuned]
    others = [other for other in rest if not _follows(other, key, settings, sizes)]
    groups: dict[tuple[str, ...], dict[str, list[int]]] = {}
    for row, (size, one) in enumerate(zip(sizes, settings, strict=True)):
        if key in one:
            cell = (*size, *(_setting(other, one) for other in others))
            groups.setdefault(cell, {}).setdefault(one[key], []).append(row)
    several = {cell: levels for cell, levels in groups.items() if len(levels) > 1}
    place = {size: i for i, size in enumerate(dict.fromkeys(sizes))}
    ordered = sorted(several, key=lambda cell: (place[cell[: len(sizes[0])]], cell))
    groups = {cell: several[cell] for cell in ordered}
    if not groups:
        return None
    names = used["run_id"].tolist()
    return Ablation(
        key=key,
        levels=tuple(map(level_text, _ordered({v for levels in groups.values() for v in levels}))),
        usual=level_text(_commonest(key, settings, groups)),
        cells=_in_words(groups, used, [_rate(one, tuned) for one in settings]),
        outcome=lacks_k(used),
        level_of={
            names[row]: level_text(value)
            for levels in groups.values()
            for value, rows in levels.items()
            for row in rows
        },
    )


def _follows(other: str, key: str, settings: Sequence[Settings], sizes: Sequence[Any]) -> bool:
    """Whether `other` has one value wherever the sizes and `key` have: no coordinate of its own."""
    values: dict[Any, set[str]] = {}
    for one, size in zip(settings, sizes, strict=True):
        values.setdefault((size, one.get(key)), set()).add(one.get(other, ""))
    return all(len(found) == 1 for found in values.values())


def _commonest(
    key: str, settings: Sequence[Settings], groups: dict[tuple[str, ...], dict[str, list[int]]]
) -> str:
    """The level most runs of the whole sweep have; of equal ones that of most cells, then the
    published one, then the first in order."""
    runs = Counter(one[key] for one in settings if key in one)
    cells = Counter(value for levels in groups.values() for value in levels)

    def rank(value: str) -> tuple[int, int, bool]:
        return runs[value], cells[value], json.loads(value) == PUBLISHED.get(key)

    return max(_ordered(set(cells)), key=rank)


def _ordered(values: set[str]) -> list[str]:
    """Numbers ascending, then true before false, then text by name."""

    def rank(value: str) -> tuple[int, float, str]:
        read = json.loads(value)
        if isinstance(read, bool) or read is None:
            return 1, -float(bool(read)), ""
        return (0, float(read), "") if isinstance(read, int | float) else (2, 0.0, str(read))

    return sorted(values, key=rank)


def level_text(value: str) -> str:
    """A value of a key, as the page says it."""
    read = json.loads(value)
    if isinstance(read, bool) or read is None:
        return {True: "on", False: "off", None: "null"}[read]
    return f"{read:g}" if isinstance(read, int | float) else str(read)


def _rate(one: Settings, tuned: Sequence[str]) -> str:
    return ", ".join(_setting(key, one) for key in tuned if key in one)


def _setting(key: str, one: Settings) -> str:
    """A key and its value as words of a cell: the last part of its name is enough there."""
    return f"{key.rpartition('.')[2]} = {level_text(one[key])}" if key in one else ""


def _in_words(
    groups: dict[tuple[str, ...], dict[str, list[int]]], used: pd.DataFrame, rates: Sequence[str]
) -> dict[str, dict[str, Level]]:
    """Cells by name, of which only what differs among them is said."""
    columns = list(zip(*groups, strict=True))
    shown = [i for i, column in enumerate(columns) if len(set(column)) > 1 or i == 1]
    return {
        ", ".join(cell[i] for i in shown if cell[i]): {
            level_text(value): _best(used, rows, rates) for value, rows in sorted(levels.items())
        }
        for cell, levels in groups.items()
    }


def _best(used: pd.DataFrame, rows: Sequence[int], rates: Sequence[str]) -> Level:
    """The runs of the learning rate with the lowest mean loss."""
    by_rate: dict[str, list[int]] = {}
    for row in rows:
        by_rate.setdefault(rates[row], []).append(row)
    levels = {rate: _level(used.iloc[places]) for rate, places in by_rate.items()}
    rate = min(levels, key=lambda name: levels[name].loss)
    tried = f"{rate} (best of {len(levels)})" if len(levels) > 1 else ""
    return replace(levels[rate], tuned=tried)


def _level(rows: pd.DataFrame) -> Level:
    """Runs of one seed, of which there should be one, count by their mean."""
    seeds: dict[float | None, list[float]] = {}
    for seed, loss in zip(numbers(rows, "seed"), np.log(numbers(rows, "loss")), strict=True):
        seeds.setdefault(None if seed != seed else float(seed), []).append(float(loss))
    measured = {name: numbers(rows, name) for name in _MEASURED}
    return Level(
        {seed: float(np.mean(values)) for seed, values in seeds.items()},
        {name: _mean(values) for name, values in measured.items()},
        tuple(map(str, rows["run_id"])),
    )


def _mean(values: Any) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _joined(found: Sequence[Ablation]) -> list[Ablation]:
    """Keys that divide the runs alike are one question."""
    by_division: dict[frozenset[frozenset[str]], Ablation] = {}
    for one in found:
        levels: dict[str, set[str]] = {}
        for run, level in one.level_of.items():
            levels.setdefault(level, set()).add(run)
        division = frozenset(map(frozenset, levels.values()))
        first = by_division.get(division)
        joined = one if first is None else replace(first, key=f"{first.key} and {one.key}")
        by_division[division] = joined
    return list(by_division.values())
