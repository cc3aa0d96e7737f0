"""How runs went: their logged rows as one DataFrame, from run folders or W&B."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.laws.forms import Array
from analysis.records.columns import is_number
from analysis.records.rows import Row
from analysis.records.sources import Source, origins

_AXES = ("step", "tokens")
_MOST_STEPS = 2**62


def load_curves(
    source: Source,
    *,
    runs: Collection[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A row per logged step of each run, by run_id and step.

    Where a step was logged more than once (a train and an eval row, or again after a resume), its
    rows are one, and of each value the last stands. A line cut short by a kill, or of no step, is
    left out.

    Args:
        source: as in `load_runs`, but no records table.
        runs: run_ids to read; None for all.
        columns: metrics to keep, such as "eval/normalized_mse"; None for all.

    Returns:
        run_id, step (int64), tokens and the metrics (float64, NaN where a row has none).

    Raises:
        TableError: a source has no curves, or a file that cannot be read; a name in `runs` or
            `columns` that is nowhere.
    """
    curves: dict[str, dict[str, Array]] = {}
    for origin in origins(source):
        for run_id, rows in origin.histories(runs):
            curves.setdefault(run_id, _arrays(rows))  # a run that two sources share: the first
    _refuse_unknown("run", runs or (), curves)
    found = {name for arrays in curves.values() for name in arrays}
    if not found - {*_AXES}:
        raise TableError(
            f"the runs of {_name(source)} have logged nothing yet; try again once they have "
            "trained for some steps."
        )
    metrics = sorted(found - {*_AXES}) if columns is None else list(columns)
    _refuse_unknown("column", metrics, found)
    return _stacked(curves, [*_AXES, *(name for name in metrics if name not in _AXES)])


def _arrays(rows: Iterable[Row]) -> dict[str, Array]:
    """Column -> float64 [steps], by ascending step."""
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        if not 0 <= row["step"] < _MOST_STEPS:  # of another program: it has no place along the run
            continue
        steps.setdefault(row["step"], {}).update(row)
    ordered = [steps[step] for step in sorted(steps)]
    names = {name for row in ordered for name in row if not name.startswith("_")}
    return {name: np.array([_number(row.get(name)) for row in ordered]) for name in sorted(names)}


def _number(value: Any) -> float:
    return float(value) if is_number(value) and not isinstance(value, bool) else np.nan


def _stacked(curves: dict[str, dict[str, Array]], columns: list[str]) -> pd.DataFrame:
    logged = {run: curves[run] for run in sorted(curves) if curves[run]}
    lengths = [len(arrays["step"]) for arrays in logged.values()]
    stacked: dict[str, Any] = {"run_id": np.repeat(np.array([*logged], dtype=object), lengths)}
    for name in columns:
        parts = zip(logged.values(), lengths, strict=True)
        values = [arrays.get(name, np.full(length, np.nan)) for arrays, length in parts]
        stacked[name] = np.concatenate(values)
    return pd.DataFrame(stacked).astype({"step": np.int64, "run_id": str})


def _refuse_unknown(kind: str, wanted: Iterable[str], known: Collection[str]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        shown = ", ".join(sorted(known)[:20]) + (", ..." if len(known) > 20 else "")
        raise TableError(
            f"no {kind} {unknown[0]} has been logged ({len(unknown)} such); there are: {shown}."
        )


def _name(source: Source) -> str:
    return ", ".join(origin.name for origin in origins(source))
