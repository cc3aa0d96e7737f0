"""When too many runs of a sweep are unusable: the rest may be its lucky part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from analysis.errors import TableError
from scaling.runs.record import Status

MOST_REJECTED = 0.2
REJECTED = "rejected"
"""The word of `allow` for sweeps of which more than a fifth is unusable."""
_UNFINISHED = (Status.planned, Status.running, Status.preempted)
"""Not yet results: they say nothing of how the runs turn out."""


class Judged(NamedTuple):
    run: str
    status: str
    reason: str
    """Why it is not used; "" for a usable run."""


def refuse_rejected(runs: Iterable[Judged], source: str = "") -> None:
    """TableError where more than `MOST_REJECTED` of the runs that came to an end are unusable.

    Runs yet to end do not count, nor does a run that is there twice under one name.
    """
    runs = list(runs)
    used = {run.run for run in runs if not run.reason}
    rejected = [
        run for run in runs if run.reason and run.status not in _UNFINISHED and run.run not in used
    ]
    ended = sum(not run.reason for run in runs) + len(rejected)
    if len(rejected) <= MOST_REJECTED * ended:
        return
    kinds = Counter(_kind(run.reason) for run in rejected)
    listed = "; ".join(f"{kind} ({count})" for kind, count in kinds.most_common(5))
    where = f"{source}: " if source else ""
    raise TableError(
        f"{where}{len(rejected)} of {ended} runs that came to an end cannot be used, more than "
        f"{MOST_REJECTED:.0%}: {listed}; the first is {rejected[0].run}. What is left may be the "
        "lucky part of the sweep, and a law of it misleads. Look at these runs and train them "
        f'again, or keep the rest on purpose with allow=("{REJECTED}",) (--allow {REJECTED}).'
    )


def _kind(reason: str) -> str:
    """A reason without the numbers of its run, to count runs by."""
    for known in ("its latents are dead", "copy of the run"):
        if reason.startswith(known):
            return known
    return reason if len(reason) <= 120 else f"{reason[:117]}..."
