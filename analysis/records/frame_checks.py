"""What a table of runs must not be, told from columns beside its numbers.

A CSV says less than record folders do, but three mistakes show in it: losses of several kinds under
one name, checkpoints of one run passed as runs, and a sweep of which too much failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import pandas as pd

from analysis.errors import TableError
from scaling.runs.record import Status

# Two values of one of these in a table are two kinds of loss: no law holds both.
_ONE_KIND = ("normalization", "loss_name", "numerics_version")
_HOW_TO_PART = {
    "loss_name": "Raw and averaged weights differ by a few percent of the loss, more than runs "
    "scatter; keep the rows of one loss",
}
_PART = "Their losses do not lie on one law; keep the rows of one value"
_MOST_REJECTED = 0.20
# These may still become results: they are no verdict on the sweep.
_UNFINISHED = {Status.planned, Status.running, Status.preempted}
_CHECKPOINT_COLUMNS = ("checkpoint", "step")
_SAME_RUN = ("n_latents", "n", "k", "seed", "lr", "batch_tokens")


def check_frame(frame: pd.DataFrame, *, source: str, allow: Collection[str] = ()) -> None:
    """TableError where rows are of several kinds, no runs of their own, or too often rejected.

    `allow` names columns that may mix, and "rejected" where any share may have failed.
    """
    _refuse_mixtures(frame, source, allow)
    _refuse_checkpoints(frame, source)
    if "rejected" not in allow:
        _refuse_rejected(frame, source)


def _refuse_mixtures(frame: pd.DataFrame, source: str, allow: Collection[str]) -> None:
    for column in (c for c in _ONE_KIND if c in frame and c not in allow):
        counts = Counter("not recorded" if pd.isna(v) else str(v) for v in frame[column])
        if len(counts) > 1:
            found = ", ".join(f"{value} ({rows} rows)" for value, rows in counts.most_common())
            remedy = _HOW_TO_PART.get(column, _PART)
            raise TableError(f"{source} mixes {column}: {found}. {remedy}, and fit them apart.")


def _refuse_checkpoints(frame: pd.DataFrame, source: str) -> None:
    """Rows equal in all but their step, where no run_id says that they are runs of their own."""
    column = next((c for c in _CHECKPOINT_COLUMNS if c in frame), None)
    if column is None or "tokens" not in frame or (column == "step" and "run_id" in frame):
        return
    same = [name for name in _SAME_RUN if name in frame]
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


def _refuse_rejected(frame: pd.DataFrame, source: str) -> None:
    if "status" not in frame:
        return
    ended = frame.loc[~frame["status"].isin([*_UNFINISHED])]
    rejected = ended.loc[ended["status"] != Status.done, "status"]
    share = len(rejected) / max(len(ended), 1)
    if share > _MOST_REJECTED:
        found = ", ".join(f"{status} ({rows})" for status, rows in Counter(rejected).most_common())
        raise TableError(
            f"{source}: {len(rejected)} of {len(ended)} ended runs ({share:.0%}) have no usable "
            f"result: {found}. Beyond {_MOST_REJECTED:.0%} the runs left are a selection, and a "
            "law of them would be too. Repair the recipe and run those again, or give the rows "
            "that are left as a table of their own."
        )
