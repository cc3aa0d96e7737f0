"""Which of many failures was the first: the others follow from it.

When a rank dies, those that wait for it fail a moment later, each with an error of its own about a
lost connection. The clock alone cannot tell, as a process that is killed leaves no word of when.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.distributed.ranks import NODE_LOST, Ended
from scaling.distributed.watchdog import ABORTED, TIMED_OUT
from scaling.runs.record import RunError
from scaling.storage.process import how_it_ended

DIED = "RankDied"
"""The `type` of the error of a rank that left no word."""
_LOST_CONNECTION_TYPES = {"CollectiveError", "DistBackendError", "DistNetworkError",
                          "DistStoreError", "ConnectionError", "ConnectionResetError"}  # fmt: skip
_LOST_CONNECTION = re.compile(
    r"connection (was )?(reset|closed|refused)|broken pipe|closed by peer|gloo|NCCL|TCPStore", re.I
)


@dataclass(frozen=True)
class Cause:
    error: RunError
    may_pass: bool
    """Whether another try may do better: a process died or hung. What Python raised by itself it
    would raise again, and a machine that is gone does not come back."""


def lost_others(error: RunError) -> bool:
    """Whether a rank failed as another was gone, or did not come in time."""
    return error.type in _LOST_CONNECTION_TYPES or (
        error.type == "RuntimeError" and _LOST_CONNECTION.search(error.message) is not None
    )


def root_cause(attempt: AttemptFolder, ended: Ended) -> Cause:
    """Why a try without an outcome ended."""
    failures = attempt.failures()
    raised = [f for f in failures if f.error.type != TIMED_OUT and not lost_others(f.error)]
    if raised:
        return Cause(raised[0].error, may_pass=False)
    told = {failure.error.rank for failure in failures}
    silent = {rank: code for rank, code in ended.exits.items() if rank not in told}
    if deaths := [rank for rank, code in silent.items() if _is_own_death(code)]:
        return Cause(_death(attempt, min(deaths), silent[min(deaths)]), may_pass=True)
    if ended.problem is not None:
        return Cause(ended.problem, may_pass=ended.problem.type != NODE_LOST)
    if failures:
        timeouts = [f for f in failures if f.error.type == TIMED_OUT]
        return Cause((timeouts or failures)[0].error, may_pass=True)
    if silent:
        return Cause(_death(attempt, min(silent), silent[min(silent)]), may_pass=True)
    return Cause(RunError(DIED, "all ranks ended, and left no outcome"), may_pass=True)


def _is_own_death(code: int) -> bool:
    """Not one that follows from another's failure: the agent's SIGTERM, or word of the end."""
    return code not in (-signal.SIGTERM, ABORTED)


def _death(attempt: AttemptFolder, rank: int, code: int) -> RunError:
    message = f"rank {rank} {how_it_ended(code)}"
    return RunError(DIED, message, attempt.last_words(rank) or None, rank)
