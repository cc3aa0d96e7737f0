"""The runs that a law of the best loss at each cost is fitted to: those no cheaper run beats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analysis.laws.law import Law
from analysis.records.table import Dropped, RunTable


def on_frontier(table: RunTable, axis: str) -> NDArray[np.bool_]:
    """Runs with a lower loss than every run of less or equal cost, bool [M].

    Of runs that share cost and loss the first stays.
    """
    order = np.lexsort((table.loss, table.points[axis]))
    losses = table.loss[order]
    best_before = np.minimum.accumulate(np.append(np.inf, losses[:-1]))
    keep = np.zeros(len(table), dtype=bool)
    keep[order] = losses < best_before
    return keep


def fitted_rows(law: type[Law], table: RunTable) -> NDArray[np.bool_]:
    """Rows that the law is about, bool [M]: all, or the frontier along `law.frontier_axis`."""
    if law.frontier_axis is None or law.frontier_axis not in table.points:
        return np.ones(len(table), dtype=bool)
    return on_frontier(table, law.frontier_axis)


def without_beaten(law: type[Law], table: RunTable) -> RunTable:
    """The table without the runs off the law's frontier, which are listed as dropped."""
    keep = fitted_rows(law, table)
    beaten = [run for run, kept in zip(table.runs, keep, strict=True) if not kept]
    reason = f"a run of no more {law.frontier_axis} has no higher loss"
    dropped = tuple(Dropped(run, reason) for run in beaten)
    return replace(table.select(keep), dropped=(*table.dropped, *dropped))
