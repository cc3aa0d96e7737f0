import io
import time

import pytest
from fake_runs import FakePlan
from rich.console import Console

from scaling.runs.record import Status
from scaling.sweep import progress
from scaling.sweep.progress import BarDisplay, LineDisplay, Tally, display_on, duration
from scaling.sweep.table import RunRow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def _row(run_id: str, status: Status) -> RunRow:
    return RunRow(
        run_id, "topk", 64, 4, {}, 300, 0, status, {"normalized_mse": 0.5}, {"wall_s": 2.0}
    )


def test_eta_follows_the_pace_of_this_launch(clock):
    plans = [FakePlan("a", steps=10, estimated_s=10), FakePlan("b", steps=10, estimated_s=30)]
    tally = Tally(plans, n_workers=1)
    assert (tally.eta_s, tally.share_done) == (None, 0.0)
    tally.start("a")
    clock[0] = 20.0
    tally.settle("a", Status.done)  # took twice its estimate
    assert tally.share_done == pytest.approx(0.25)
    assert tally.eta_s == pytest.approx(60.0)
    tally.start("b")
    tally.progress("b", {"tokens": 0})
    tally.progress("b", {"tokens": 500})
    assert tally.share_done == pytest.approx(0.625)


def test_what_a_checkpoint_gave_is_not_counted_as_pace(clock):
    tally = Tally([FakePlan("a", steps=10, estimated_s=100)], n_workers=1)
    tally.start("a")
    tally.progress("a", {"tokens": 900})
    clock[0] = 10.0
    tally.progress("a", {"tokens": 950})
    assert tally.eta_s == pytest.approx(10.0)


def test_the_last_run_is_no_faster_than_one_worker(clock):
    plans = [FakePlan(str(i), estimated_s=10) for i in range(2)] + [FakePlan("x", estimated_s=30)]
    tally = Tally(plans, n_workers=2)
    clock[0] = 10.0
    tally.settle("0", Status.done)
    tally.settle("1", Status.done)
    assert tally.eta_s == pytest.approx(30.0)


def test_counts_name_every_state():
    tally = Tally([FakePlan(name) for name in "abcdef"], n_workers=2)
    tally.start("a")
    tally.hold("b")
    for run_id, status in zip("cde", (Status.done, Status.failed, Status.diverged), strict=True):
        tally.settle(run_id, status)
    assert tally.counts() == (
        "1 done, 1 running, 1 diverged, 1 failed, 2 left, 1 of them with another launch"
    )


def test_plain_output_has_a_line_per_run_and_a_sign_of_life(clock):
    out = io.StringIO()
    display = display_on(Console(file=out, width=200))
    assert isinstance(display, LineDisplay)
    tally = Tally([FakePlan("a"), FakePlan("b")], n_workers=1)
    tally.settle("a", Status.done)
    with display:
        display.note(tally, _row("a", Status.done))
        display.show(tally)
        clock[0] = progress.HEARTBEAT_S
        display.show(tally)
        display.show(tally)
    assert out.getvalue().splitlines() == [
        "[1/2] n=64 k=4 tokens=300  done  normalized_mse 0.5000  2.0 s",
        "1 done, 0 running, 0 failed, 1 left, ETA 15 s",
    ]


def test_a_terminal_gets_bars_with_speed_and_loss():
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=True)
    display = display_on(console)
    assert isinstance(display, BarDisplay)
    tally = Tally([FakePlan("a"), FakePlan("b")], n_workers=1)
    tally.start("a")
    tally.progress("a", {"tokens": 150, "perf/tokens_per_s": 1234.4, "train/loss": 0.5})
    with display:
        display.show(tally)
        display.note(tally, _row("b", Status.diverged))
    text = out.getvalue()
    assert "0 done, 1 running, 0 failed, 1 left" in text
    assert "150 of 300 tokens" in text
    assert "1,234 tok/s  loss 0.5000" in text
    assert "diverged" in text


def test_durations_for_people():
    assert [duration(s) for s in (0.4, 59, 61, 3599, 7_620)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "59 min 59 s",
        "2 h 07 min",
    ]
