"""The thread that ends a rank: when, and with which words."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.distributed.watchdog import ABORTED, TIMED_OUT, Watchdog

TIMEOUT_S = 0.4


class Guarded:
    """A watchdog that notes the exit code instead of exiting."""

    def __init__(self, folder: Path) -> None:
        self.codes: list[int] = []
        self.ended = threading.Event()
        self.attempt = AttemptFolder(folder)
        self.watchdog = Watchdog(3, self.attempt, TIMEOUT_S, end=self._end)
        self.watchdog.start()

    def _end(self, code: int) -> None:
        self.codes.append(code)
        self.ended.set()


@pytest.fixture
def guarded(tmp_path: Path):
    made = Guarded(tmp_path)
    yield made
    made.watchdog.close()


def test_a_long_wait_is_named_by_step_and_operation(guarded: Guarded) -> None:
    guarded.watchdog.step = 17
    with guarded.watchdog.during("all_reduce of w_dec gradient over dp"):
        assert guarded.ended.wait(5)
    (failure,) = guarded.attempt.failures()
    assert guarded.codes[0] == 1
    assert (failure.error.type, failure.error.rank) == (TIMED_OUT, 3)
    assert "all_reduce of w_dec gradient over dp at step 17" in failure.error.message
    assert "launcher.collective_timeout_s=0.4" in failure.error.message


def test_before_the_first_step_it_says_so(guarded: Guarded) -> None:
    with guarded.watchdog.during("meeting the other ranks"):
        assert guarded.ended.wait(5)
    assert "meeting the other ranks at the start" in guarded.attempt.failures()[0].error.message


def test_many_short_waits_are_no_long_one(guarded: Guarded) -> None:
    _wait_often(guarded.watchdog, lambda name: guarded.watchdog.during(name))
    assert guarded.codes == []
    with guarded.watchdog.during("one that holds them all"):  # so the test can fail
        _wait_often(guarded.watchdog, lambda name: guarded.watchdog.during(name))
        assert guarded.ended.wait(5)


def _wait_often(watchdog: Watchdog, during: Callable) -> None:
    until = time.monotonic() + 3 * TIMEOUT_S
    while time.monotonic() < until:
        with during("a short one"):
            time.sleep(TIMEOUT_S / 8)


def test_it_ends_with_a_try_that_is_over_elsewhere(guarded: Guarded) -> None:
    guarded.attempt.abort("node 1 failed")
    assert guarded.ended.wait(5)
    assert guarded.codes[0] == ABORTED
    assert guarded.attempt.failures() == []


def test_the_first_word_of_a_rank_stays(guarded: Guarded) -> None:
    guarded.watchdog.step = 2
    with guarded.watchdog.during("the first"):
        assert guarded.ended.wait(5)
    with guarded.watchdog.during("a later one"):
        time.sleep(2 * TIMEOUT_S)
    assert "the first" in guarded.attempt.failures()[0].error.message
