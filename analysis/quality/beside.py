"""What evaluations give beside a metric's numbers: the error of what was drawn, and baselines.

The text, tasks, vectors or tokens that a metric is measured on are drawn once, alike for all runs.
A standard error says how far another draw would move the level of one run; how far it would move a
trend is another matter (draw.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.laws.forms import Array
from analysis.quality.metrics import Quality
from analysis.records.columns import numbers
from scaling.runs.draws import read_draws
from scaling.runs.evaluation_columns import (
    MEASURED_AS,
    baseline_column,
    baselines_of,
    standard_error_column,
)

_SAME = 1e-3
"""Relative: what rounding leaves between baselines of the same draw."""


@dataclass(frozen=True)
class Beside:
    """Of the runs of one metric, in their order."""

    standard_error: float | None
    """The median over runs, in the column's own unit; None where no record has one."""
    baselines: Mapping[str, Array]
    """By name, a value per run; NaN where a record has none."""
    draws_RU: Array | None = None
    """What each unit that was drawn for all runs moves each run's number by; None where not all
    folders say it of the same units, or each run has units of its own."""

    def span(self, name: str) -> tuple[float, float]:
        """Least and largest of a baseline."""
        values = self.baselines[name]
        return float(np.nanmin(values)), float(np.nanmax(values))

    def along(self, name: str, levels: Array) -> dict[float, float] | None:
        """A baseline at each level of the runs' `levels` [M]; None where runs of a level do not
        share it, since it is each run's own."""
        found: dict[float, float] = {}
        for level in np.unique(levels).tolist():
            values = self.baselines[name][levels == level]
            values = values[np.isfinite(values)]
            if len(values) and np.ptp(values) > _SAME * np.abs(values).max():
                return None
            if len(values):
                found[level] = float(values.mean())
        return found


NOTHING = Beside(None, {})


def beside(frame: pd.DataFrame, quality: Quality) -> Beside:
    """Of the runs in `frame`, whose columns are as in `load_runs`."""
    errors = numbers(frame, standard_error_column(quality.column))
    known = errors[np.isfinite(errors)]
    names = baselines_of(quality.column, [str(column) for column in frame])
    values = {name: numbers(frame, baseline_column(quality.column, name)) for name in names}
    return Beside(
        float(np.median(known)) if len(known) else None,
        {name: one for name, one in values.items() if np.isfinite(one).any()},
        _draws(frame, quality),
    )


def _draws(frame: pd.DataFrame, quality: Quality) -> Array | None:
    how = f"{quality.metric}_{MEASURED_AS}"
    if how not in frame or "folder" not in frame:
        return None
    found: list[Array] = []
    units: set[tuple[str, int]] = set()
    for folder, measured_as in zip(frame["folder"], frame[how], strict=True):
        if not isinstance(folder, str) or not folder:
            return None
        of_run = read_draws(Path(folder), quality.metric, str(measured_as))
        if quality.column not in of_run.moves:
            return None
        found.append(of_run.moves[quality.column])
        units.add((of_run.units, len(found[-1])))
    return np.stack(found) if len(units) == 1 else None
