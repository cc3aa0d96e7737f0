"""The background thread: results by key, made once and ahead; faults and exits never hang."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaling.activations.prefetch import Ahead, Background, Stopped, Stopping

ROOT = Path(__file__).parents[3]


@pytest.fixture
def background() -> Iterator[Background]:
    background = Background("test")
    yield background
    background.close()


class Made:
    """Notes what was made, in order."""

    def __init__(self) -> None:
        self.keys: list[int] = []

    def __call__(self, key: int, stopping: Stopping) -> str:
        self.keys.append(key)
        return f"block {key}"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_next_is_made_without_being_asked_for(background: Background) -> None:
    made = Made()
    ahead: Ahead[int, str] = Ahead(background, made, keep=2)
    assert ahead.get(4, 5) == "block 4"
    wait_until(lambda: made.keys == [4, 5])
    assert ahead.get(5, 6) == "block 5"
    wait_until(lambda: made.keys == [4, 5, 6])


def test_whoever_lags_one_behind_has_nothing_made_twice(background: Background) -> None:
    made = Made()
    ahead: Ahead[int, str] = Ahead(background, made, keep=2)
    for key in (0, 0, 1, 0, 1, 1, 2, 1, 2, 3):
        ahead.get(key, key + 1)
    wait_until(lambda: len(made.keys) == 5)
    assert made.keys == [0, 1, 2, 3, 4]
    ahead.get(0, 1)  # long gone: made anew, and it is the right one
    assert made.keys[5] == 0


def test_no_more_is_kept_than_was_said(background: Background) -> None:
    ahead: Ahead[int, list[int]] = Ahead(background, lambda key, _: [key], keep=2)
    for key in range(10):
        ahead.get(key, key + 1)
    assert list(ahead._known) == [8, 9, 10]


def test_an_error_reaches_who_asks_and_the_next_try_may_do(background: Background) -> None:
    broken = {3}

    def make(key: int, _: Stopping) -> int:
        if key in broken:
            raise OSError(f"no block {key}")
        return key

    ahead: Ahead[int, int] = Ahead(background, make, keep=2)
    assert ahead.get(2, 3) == 2  # the fault of what is made ahead waits until that is asked for
    for _ in range(2):
        with pytest.raises(OSError, match="no block 3"):
            ahead.get(3, 4)
    broken.clear()
    assert ahead.get(3, 4) == 3


def test_closing_ends_what_is_being_made() -> None:
    background = Background("to be closed")
    begun = threading.Event()

    def make(key: int, stopping: Stopping) -> int:
        begun.set()
        wait_until(stopping)
        raise Stopped

    ahead: Ahead[int, int] = Ahead(background, make, keep=2)
    threading.Timer(0.05, lambda: begun.wait(10) and background.close()).start()
    with pytest.raises(Stopped):
        ahead.get(0, 1)
    with pytest.raises(RuntimeError, match="stopped"):
        ahead.get(2, 3)
    background.close()  # again: waits for the end
    assert "to be closed" not in [thread.name for thread in threading.enumerate()]


def test_a_process_ends_while_something_is_being_made() -> None:
    """Not after it, and not by a crash."""
    script = """
import time, weakref
from scaling.activations.prefetch import Ahead, Background, Stopped

class Owner:
    def __init__(self):
        background = Background("test")
        weakref.finalize(self, background.close)
        self.ahead = Ahead(background, make, 2)

def make(key, stopping):
    until = time.monotonic() + (60 if key else 0)
    while time.monotonic() < until:
        if stopping():
            raise Stopped
        time.sleep(0.001)
    return key

owner = Owner()
print(owner.ahead.get(0, 1))
"""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "0\n"
    assert done.stderr == ""
    assert time.monotonic() - started < 20
