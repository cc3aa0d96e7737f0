"""scaling.cancel on sweeps of this machine, and on what is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scaling import cancel
from scaling.runs.store import SweepStore
from scaling.storage.process import this_process
from scaling.sweep.interrupt import Interrupts
from scaling.sweep.stop import announced, heeding, last_wish, launches_of, request_stop
from tests.compose import ROOT, TINY

LONG = ["train.tokens=8_000_000", "checkpoint.every_tokens=2_560", "sweep_name=long"]


@contextmanager
def launched(cwd: Path) -> Iterator[tuple[subprocess.Popen[bytes], SweepStore]]:
    """A launch of two runs, both at work and with a checkpoint."""
    keys = [*TINY, *LONG, "autoencoder.k=2,4", "launcher.workers=2"]
    command = [sys.executable, str(ROOT / "launch.py"), "-m", *keys]
    store = SweepStore(cwd / "runs/long")
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: len(list(store.path.glob("*/checkpoints/step*"))) >= 2)
            yield process, store
        finally:
            process.kill()


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)


def test_a_local_sweep_checkpoints_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with launched(tmp_path) as (process, store):
        assert cancel.main([str(store.path)]) == 0
        assert process.wait(10) == 130
    assert [folder.status() for folder in store.folders()] == ["preempted"] * 2
    shown = capsys.readouterr().out
    assert f"stopping launch {process.pid}" in shown
    assert "2 preempted" in shown
    assert cancel.main([str(store.path)]) == 0
    assert "nothing works on this sweep" in capsys.readouterr().out


def test_now_kills(tmp_path: Path) -> None:
    with launched(tmp_path) as (process, store):
        assert cancel.main([str(store.path), "--now"]) == 0
        assert process.wait(10) == -9
    assert all(folder.holder() is None for folder in store.folders())
    assert launches_of(store) == []


def test_a_launch_out_of_reach_of_signals_heeds_the_wish(tmp_path: Path, monkeypatch) -> None:
    """As on another host: nothing but the file reaches it."""
    monkeypatch.setattr(cancel, "is_here", lambda _process: False)
    with launched(tmp_path) as (process, store):
        assert cancel.main([str(store.path)]) == 0
        assert process.wait(20) == 130
    assert [folder.status() for folder in store.folders()] == ["preempted"] * 2


def test_a_wish_is_heeded_by_those_who_were_there(tmp_path: Path) -> None:
    store = SweepStore(tmp_path)
    request_stop(store)
    with Interrupts() as before, heeding(store, before):
        time.sleep(1.5)
        assert before.count == 0  # an old wish
        request_stop(store)
        wait_until(lambda: before.count == 1)
    assert last_wish(store) is not None


def test_a_wish_and_the_signal_that_goes_with_it_are_one(tmp_path: Path) -> None:
    """Counted as two they were a second Ctrl-C, which kills runs before they have checkpointed."""
    store = SweepStore(tmp_path)
    with Interrupts() as interrupts, heeding(store, interrupts):
        request_stop(store)
        wait_until(lambda: interrupts.count)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert interrupts.count == 1
        os.kill(os.getpid(), signal.SIGINT)  # whoever presses it now means more
        assert interrupts.count == 2


def test_launches_are_announced_and_the_dead_forgotten(tmp_path: Path) -> None:
    store = SweepStore(tmp_path)
    with announced(store):
        assert [launch["pid"] for launch in launches_of(store)] == [this_process()["pid"]]
    assert launches_of(store) == []
    dead = tmp_path / "launches" / "here-1.json"
    dead.parent.mkdir()
    dead.write_text(json.dumps({**this_process(), "pid_started": 1.0}))
    assert launches_of(store) == []
    assert not dead.exists()


def test_what_is_no_sweep_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cancel.main([str(tmp_path / "nothing")]) == 2
    assert "is no sweep" in capsys.readouterr().err
