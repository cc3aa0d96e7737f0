"""A table of runs in the one form that fits take, read from CSV or made from a DataFrame.

Columns: n_latents (or n), k, a loss column (normalized_mse or loss, unless one is named), and
optionally tokens, flops (or flops_dense), subject_params, run_id, seed, status, converged (did its
stopping rule end the run: true, false, or empty without a rule). One row is one run.
A table whose response is "tokens" holds tokens to convergence where others hold losses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import TableError
from analysis.files import checked_path
from analysis.laws.forms import Array
from analysis.records.csv_file import read_csv
from analysis.records.frame_checks import check_frame
from analysis.records.sparsity import Sparsity, with_sparsity
from analysis.records.stopped import not_converged, refuse_budgets, stopped_by_rule

LOSS_COLUMNS = ("normalized_mse", "loss")
CONVERGENCE_COLUMNS = ("tokens_to_convergence", "tokens")
_AXIS_COLUMNS = {"n": ("n_latents", "n"), "k": ("k",), "tokens": ("tokens",)}
# Few laws need these, and records may lack them in some rows: there, the table goes without.
_EXTRA_COLUMNS = {"flops": ("flops", "flops_dense"), "subject": ("subject_params",)}

COLUMN_OF = {"n": "n_latents", "subject": "subject_params"}  # where it is not the axis's own name


class Dropped(NamedTuple):
    """A run that was left out before fitting."""

    run: str  # run_id, or "row 7" (1-based, header not counted) where there is none
    reason: str


@dataclass(frozen=True)
class RunTable:
    """Usable runs. Arrays are float64 [M].

    points holds "n", "k" and, where every run has them, "tokens", "flops" (training FLOPs) and
    "subject" (parameters of the subject model). `loss` is the value fitted: a loss, or, where
    `response` is "tokens", the tokens to convergence.
    """

    points: dict[str, Array]
    loss: Array
    runs: tuple[str, ...]
    loss_name: str
    seeds: tuple[Any, ...]
    dropped: tuple[Dropped, ...] = ()
    response: str = "loss"
    shown_converged: str = ""  # by which rule every run was shown converged; "": it was not
    stopped: tuple[bool | None, ...] | None = None  # column converged; None: there is none

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def log_loss(self) -> Array:
        return np.log(self.loss)

    def select(self, mask: NDArray[np.bool_]) -> RunTable:
        keep = np.flatnonzero(mask)
        return replace(
            self,
            points={axis: values[keep] for axis, values in self.points.items()},
            loss=self.loss[keep],
            runs=tuple(self.runs[i] for i in keep),
            seeds=tuple(self.seeds[i] for i in keep),
            stopped=None if self.stopped is None else tuple(self.stopped[i] for i in keep),
        )

    def at_budget(self, tokens: float) -> RunTable:
        return self.select(self.points["tokens"] == tokens)


def read_table(
    path: Path,
    loss: str | None = None,
    response: str = "loss",
    allow: Collection[str] = (),
    sparsity: Sparsity = "k",
) -> RunTable:
    """Read a CSV file. TableError where it is missing, not a table, or not usable.

    `loss` names the column of the value fitted; `response` says whether that is a "loss" or the
    "tokens" to convergence; `allow` is as in `check_frame`; `sparsity` is the column taken as k.
    """
    how: dict[str, Any] = {"loss": loss, "response": response, "allow": allow}
    return table_from_frame(_frame_of_file(path), source=str(path), sparsity=sparsity, **how)


def columns_of_file(path: Path) -> frozenset[str]:
    """The names in a CSV file's header line. TableError where it is missing or not a table."""
    return frozenset(str(name).strip() for name in _frame_of_file(path, nrows=0))


def _frame_of_file(path: Path, nrows: int | None = None) -> pd.DataFrame:
    if not checked_path(path).is_file():
        raise TableError(f"--table {path} is not a file; give the path of a CSV table of runs.")
    remedy = (
        "it needs a header line and one line per run, with columns n_latents (or n), k and "
        "normalized_mse (or loss)."
    )
    return read_csv(path, name=f"--table {path}", remedy=remedy, nrows=nrows)


def table_from_frame(
    frame: pd.DataFrame,
    *,
    source: str,
    loss: str | None = None,
    response: str = "loss",
    allow: Collection[str] = (),
    sparsity: Sparsity = "k",
) -> RunTable:
    """Check and convert. Rows with a status other than done are dropped, with the reason.

    Where the response is "tokens", so are rows whose column `converged` is not true; without that
    column, tokens that differ within an n are refused.
    """
    frame = frame.rename(columns=str.strip) if all(map(_is_text, frame.columns)) else frame
    if frame.empty:
        raise TableError(f"{source} has no rows; a fit needs at least one run per row.")
    check_frame(frame, source=source, allow=allow)
    frame = with_sparsity(frame, sparsity, source)
    names = LOSS_COLUMNS if response == "loss" else CONVERGENCE_COLUMNS
    loss_name = _column(frame, names if loss is None else (loss,), source, optional=False)
    axes = _axis_columns(frame, source, response)
    frame = frame.assign(_run=_run_names(frame, source))
    frame, dropped = _finished(frame)
    stopped = stopped_by_rule(frame, source)
    if response == "tokens":
        frame, unfinished = _to_convergence(frame, stopped, loss_name, source)
        dropped, stopped = (*dropped, *unfinished), None
    points = {axis: _positive(frame, column, source) for axis, column in axes.items()}
    points |= _extra_axes(frame)
    seeds = tuple(frame["seed"]) if "seed" in frame else (None,) * len(frame)
    values = (_losses if response == "loss" else _positive)(frame, loss_name, source)
    table = RunTable(
        *(points, values, tuple(frame["_run"]), loss_name, seeds, dropped, response),
        stopped=stopped,
    )
    _refuse_duplicates(table, source)
    return table


def _is_text(name: object) -> bool:
    return isinstance(name, str)


def _column(frame: pd.DataFrame, choices: Sequence[str], source: str, *, optional: bool) -> str:
    found = next((name for name in choices if name in frame), "")
    if not found and not optional:
        columns = ", ".join(map(str, frame.columns))
        raise TableError(
            f"{source} has no column {' or '.join(choices)}; its columns are: {columns}. "
            "Rename the column or add it."
        )
    return found


def _axis_columns(frame: pd.DataFrame, source: str, response: str) -> dict[str, str]:
    """Of the common axes; tokens to convergence are no axis but the value fitted."""
    return {
        axis: column
        for axis, choices in _AXIS_COLUMNS.items()
        if axis != response
        and (column := _column(frame, choices, source, optional=axis == "tokens"))
    }


def _extra_axes(frame: pd.DataFrame) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for axis, choices in _EXTRA_COLUMNS.items():
        column = next((name for name in choices if name in frame), None)
        if column is None:
            continue
        values = np.asarray(pd.to_numeric(frame[column], errors="coerce"), dtype=np.float64)
        if (np.isfinite(values) & (values > 0)).all():
            found[axis] = values
    return found


def _run_names(frame: pd.DataFrame, source: str) -> list[str]:
    if "run_id" not in frame:
        return [f"row {i + 1}" for i in range(len(frame))]
    runs = [str(run) for run in frame["run_id"]]
    repeated = next((run for run, count in Counter(runs).items() if count > 1), None)
    if repeated is not None:
        raise TableError(
            f"{source} has run_id {repeated} more than once; a row must be a finished run, "
            "and checkpoints of one run are not independent points. Keep one row per run."
        )
    return runs


def _finished(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Dropped, ...]]:
    if "status" not in frame:
        return frame, ()
    unfinished = frame["status"] != "done"
    rows = zip(frame["_run"][unfinished], frame["status"][unfinished], strict=True)
    dropped = tuple(Dropped(run, f"status is {status}") for run, status in rows)
    return frame.loc[~unfinished], dropped


def _to_convergence(
    frame: pd.DataFrame, stopped: tuple[bool | None, ...] | None, tokens: str, source: str
) -> tuple[pd.DataFrame, tuple[Dropped, ...]]:
    """The rows whose `tokens` are those to convergence, and why the others are not."""
    if stopped is None:
        if tokens == "tokens":
            refuse_budgets(frame, tokens, source)
        return frame, ()
    dropped = starmap(Dropped, not_converged(frame["_run"], stopped, source))
    return frame.loc[[value is True for value in stopped]], tuple(dropped)


def tokens_to_convergence(table: RunTable) -> RunTable:
    """The same runs with tokens to convergence in place of losses, as law d_star takes them.

    TableError where the table has no tokens, or no run that its stopping rule ended.
    """
    stopped = table.stopped
    if stopped is None or "tokens" not in table.points:
        raise TableError(
            "nothing says which runs were trained to convergence, so their tokens are budgets; "
            "train with a stopping rule (train.stop.fall), which the column converged tells."
        )
    dropped = starmap(Dropped, not_converged(table.runs, stopped, "the sweep"))
    kept = table.select(np.array([value is True for value in stopped], dtype=bool))
    points = {axis: v for axis, v in kept.points.items() if axis not in ("tokens", "flops")}
    return replace(
        kept,
        points=points,
        loss=kept.points["tokens"],
        **{"loss_name": "tokens", "response": "tokens", "stopped": None},
        dropped=(*table.dropped, *dropped),
    )


def _numbers(frame: pd.DataFrame, column: str, source: str) -> Array:
    try:
        return frame[column].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError, OverflowError) as error:
        raise TableError(f"{source}: column {column} is not all numbers ({error}).") from error


def _positive(frame: pd.DataFrame, column: str, source: str) -> Array:
    values = _numbers(frame, column, source)
    _refuse(frame, values, ~(np.isfinite(values) & (values > 0)), f"{column} must be > 0", source)
    return values


def _losses(frame: pd.DataFrame, column: str, source: str) -> Array:
    values = _numbers(frame, column, source)
    _refuse(frame, values, ~np.isfinite(values), f"{column} must be a finite number", source)
    _refuse(frame, values, values <= 0, f"{column} must be > 0: its log is fitted", source)
    scale = f"{column} must be < 1: 1 is the error of predicting the mean, and no usable run"
    _refuse(frame, values, values >= 1, scale, source)
    return values


def _refuse(
    frame: pd.DataFrame, values: Array, bad: NDArray[np.bool_], rule: str, source: str
) -> None:
    if not bad.any():
        return
    first = int(np.flatnonzero(bad)[0])
    raise TableError(
        f"{source}: {rule}, but {frame['_run'].iloc[first]} has {values[first]:g} ({bad.sum()} of "
        f"{len(bad)} rows are like that). Correct or remove such rows, or give them a status "
        "column that says failed or diverged."
    )


def _refuse_duplicates(table: RunTable, source: str) -> None:
    frame = pd.DataFrame({**table.points, "loss": table.loss, "seed": table.seeds})
    again = frame.duplicated(keep=False).to_numpy()
    if again.any():
        names = [run for run, repeated in zip(table.runs, again, strict=True) if repeated]
        raise TableError(
            f"{source} has exact duplicates: {names[0]} and {names[1]} agree in every coordinate "
            f"and in {table.loss_name} ({again.sum()} rows in all). Counted twice they would make "
            "every interval too narrow; remove the copies (another seed is not a copy)."
        )
