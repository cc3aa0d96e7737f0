"""Checkpoints of one run passed as runs: they share its errors and are no points of a law."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from analysis.errors import TableError
from analysis.records.columns import numbers
from scaling.runs.record import Status

_STEP_COLUMNS = ("checkpoint", "step")
_SAME_RUN = ("n_latents", "n", "k", "seed", "lr", "batch_tokens")


def refuse_one_run(run: object, tokens: Iterable[float], where: str = "") -> None:
    """TableError where one run is done at several token counts. `where` says in which places."""
    distinct = sorted({*tokens})
    if len(distinct) > 1:
        raise TableError(
            f"run {run} is there more than once, done at {len(distinct)} token counts, "
            f"{distinct[0]:.0f} to {distinct[-1]:.0f}{where}: checkpoints of one run are not "
            "runs, and no independent points of a law. Keep the run as it ended; "
            "load_curves reads how its loss fell."
        )


def refuse_repeated_runs(frame: pd.DataFrame) -> None:
    """TableError where a run_id is done at several token counts."""
    if not {"run_id", "tokens"} <= {*frame}:
        return
    done = frame.loc[frame["status"] == Status.done] if "status" in frame else frame
    if not done["run_id"].duplicated().any():
        return
    tokens = pd.Series(numbers(done, "tokens"), index=done.index)
    for run, counts in tokens.groupby(done["run_id"]):
        refuse_one_run(run, counts.dropna())


def refuse_steps(frame: pd.DataFrame, source: str) -> None:
    """Rows equal in all but their step, where no run_id says that they are runs of their own."""
    column = next((c for c in _STEP_COLUMNS if c in frame), None)
    if column is None or "tokens" not in frame or (column == "step" and "run_id" in frame):
        return
    same = [name for name in _SAME_RUN if name in frame]
    if not same:  # no table of runs, as the columns it lacks will tell
        return
    for _, rows in frame.groupby(same, dropna=False):
        steps, tokens = (rows[name].to_list() for name in (column, "tokens"))
        if len(rows) > 1 and len({*steps}) == len({*tokens}) == len(rows):
            sizes = ", ".join(f"{name} {rows[name].iloc[0]}" for name in same)
            raise TableError(
                f"{source} has {len(rows)} rows of {sizes} that differ in {column} and tokens: "
                "they read as checkpoints of one run, which share its errors and are not "
                "independent points. Keep the last row of each run; if they are runs of their own, "
                "give each a run_id and leave that column out."
            )
