"""What a table of runs must not be, told from columns beside its numbers.

A CSV says less than record folders do, but three mistakes show in it: losses of several kinds under
one name, checkpoints of one run passed as runs, and a sweep of which too much failed.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from analysis.records.checkpoints import refuse_repeated_runs, refuse_steps
from analysis.records.mixtures import LOSS_NAME, SAME_FOR_ALL, refuse_mixtures
from analysis.records.rejected import REJECTED, Judged, refuse_rejected
from scaling.runs.record import Status


def check_frame(frame: pd.DataFrame, *, source: str, allow: Collection[str] = ()) -> None:
    """TableError where rows are of several kinds, no runs of their own, or too often rejected.

    `allow` names columns that may mix, and "rejected" where any share may have failed.
    """
    done = frame.loc[frame["status"] == Status.done] if "status" in frame else frame
    refuse_mixtures(done, allow, source=source, columns=(*SAME_FOR_ALL, LOSS_NAME))
    refuse_repeated_runs(frame)
    refuse_steps(frame, source)
    if "status" in frame and REJECTED not in allow:
        refuse_rejected(_judged(frame), source)


def _judged(frame: pd.DataFrame) -> list[Judged]:
    """A row's status is all that is known of why it would not be used."""
    runs = frame["run_id"] if "run_id" in frame else [f"row {i + 1}" for i in np.arange(len(frame))]
    rows = zip(runs, frame["status"], strict=True)
    return [
        Judged(str(run), str(status), "" if status == Status.done else f"status is {status}")
        for run, status in rows
    ]
