"""Among many failures, the one that the others follow from."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.distributed.blame import Cause, root_cause
from scaling.distributed.ranks import NODE_LOST, Ended
from scaling.distributed.watchdog import ABORTED, TIMED_OUT
from scaling.runs.record import RunError

LOST = RunError("CollectiveError", "at step 3: all_reduce failed: Connection closed by peer", "t")
GLOO = RunError("RuntimeError", "[gloo/transport/tcp/pair.cc:534] Connection closed by peer", "t")


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptFolder:
    return AttemptFolder(tmp_path)


def told(attempt: AttemptFolder, rank: int, error: RunError) -> None:
    time.sleep(0.01)
    attempt.write_failure(rank, RunError(error.type, error.message, error.traceback, rank))


def cause(attempt: AttemptFolder, exits: dict[int, int], problem: RunError | None = None) -> Cause:
    return root_cause(attempt, Ended(exits, problem))


def test_a_killed_rank_before_those_that_lost_it(attempt: AttemptFolder) -> None:
    told(attempt, 0, LOST)
    told(attempt, 1, GLOO)
    attempt.log_path(2, "stderr").write_text("its last words\n")
    found = cause(attempt, {0: 1, 1: 1, 2: -signal.SIGKILL, 3: -signal.SIGTERM})
    assert (found.error.type, found.error.rank, found.may_pass) == ("RankDied", 2, True)
    assert found.error.message.startswith("rank 2 was killed by SIGKILL")
    assert found.error.traceback == "its last words"


def test_what_a_rank_raised_by_itself_first(attempt: AttemptFolder) -> None:
    told(attempt, 0, LOST)
    told(attempt, 3, RunError("ZeroDivisionError", "of this run", "trace"))
    told(attempt, 1, RunError("KeyError", "later", "trace"))
    found = cause(attempt, {0: 1, 1: 1, 3: 1})
    assert (found.error.type, found.error.rank, found.may_pass) == ("ZeroDivisionError", 3, False)


def test_a_timeout_before_lost_connections(attempt: AttemptFolder) -> None:
    told(attempt, 1, LOST)
    told(attempt, 0, RunError(TIMED_OUT, "at step 4"))
    found = cause(attempt, {0: 1, 1: 1, 3: -signal.SIGTERM, 2: ABORTED})
    assert (found.error.type, found.may_pass) == (TIMED_OUT, True)


def test_a_lost_node_does_not_come_back(attempt: AttemptFolder) -> None:
    told(attempt, 0, LOST)
    found = cause(attempt, {0: 1}, RunError(NODE_LOST, "node 1 is gone"))
    assert (found.error.type, found.may_pass) == (NODE_LOST, False)


def test_nothing_known_is_said_so(attempt: AttemptFolder) -> None:
    assert "no outcome" in cause(attempt, {}).error.message
    assert cause(attempt, {1: 7}).error.message == "rank 1 exited with code 7"
