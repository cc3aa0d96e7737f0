"""What evaluations give beside a metric's numbers: the error of what was drawn, and baselines.

The text, tasks, vectors, tokens or latents that a metric is measured on are drawn once, alike for
all runs. So their error hardly moves differences between runs, and is no part of the intervals of
trends; it says how far another draw would move the level of one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws.forms import Array
from analysis.quality.metrics import Quality
from analysis.records.columns import numbers
from scaling.runs.evaluation_columns import baseline_column, baselines_of, standard_error_column

_SAME = 1e-3
"""Relative: what rounding leaves between baselines of the same draw."""


@dataclass(frozen=True)
class Beside:
    """Of the runs of one metric, in their order."""

    standard_error: float | None
    """The median over runs, in the column's own unit; None where no record has one."""
    baselines: Mapping[str, Array]
    """By name, a value per run; NaN where a record has none."""

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
    )
