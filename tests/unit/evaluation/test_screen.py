"""What an evaluation says of its progress, on a terminal and in a log."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from scaling.evaluation import screen
from scaling.evaluation.estimate import Baseline, StandardError
from scaling.evaluation.metric import Measured


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock: list[float]) -> None:
    out = io.StringIO()
    shown = screen.Screen(Console(file=out, width=20))
    with shown.metric("omp") as told:
        for done in range(1, 11):
            clock[0] += 10
            told(done, 10)
        told(1, 4)  # its next phase: another pace
        clock[0] += 100
        told(2, 4)
    assert out.getvalue().splitlines() == [
        "  omp: 2 of 10, about 80 s left",
        "  omp: 4 of 10, about 60 s left",
        "  omp: 6 of 10, about 40 s left",
        "  omp: 8 of 10, about 20 s left",
        "  omp: 2 of 4, about 3 min left",
    ]


def test_the_whole_has_an_eta_after_its_first_run(clock: list[float]) -> None:
    out = io.StringIO()
    shown = screen.Screen(Console(file=out))
    shown.begin(3)
    shown.run("a n=64")
    clock[0] += 300
    shown.run("b n=64")
    clock[0] += 100
    shown.run("c n=64")
    assert out.getvalue().splitlines() == [
        "[1/3] a n=64",
        "[2/3] b n=64, about 10 min left for all",
        "[3/3] c n=64, about 3 min left for all",
    ]


def test_a_terminal_gets_a_bar_that_goes(clock: list[float]) -> None:
    out: Any = io.StringIO()
    shown = screen.Screen(Console(file=out, force_terminal=True, width=100))
    with shown.metric("downstream") as told:
        told(3, 8)
    assert "downstream" in out.getvalue()
    assert "3 of 8" in out.getvalue()


def test_what_is_waited_for_within_a_metric_has_its_own_line(clock: list[float]) -> None:
    out = io.StringIO()
    shown = screen.Screen(Console(file=out))
    with shown.metric("omp") as told:
        with shown.metric("text") as told_of_text:
            clock[0] += 100
            told_of_text(1, 3)
        clock[0] += 20
        told(1, 4)
    assert out.getvalue().splitlines() == [
        "  text: 1 of 3, about 3 min left",
        "  omp: 1 of 4, about 60 s left",
    ]


def test_a_terminal_shows_both_bars() -> None:
    out: Any = io.StringIO()
    shown = screen.Screen(Console(file=out, force_terminal=True, width=100))
    for _ in range(2):
        with shown.metric("omp") as told, shown.metric("text") as told_of_text:
            told_of_text(1, 3)
            told(5, 8)
            shown._bars.refresh()  # type: ignore[union-attr]
    assert "1 of 3" in out.getvalue()
    assert "5 of 8" in out.getvalue()


def test_numbers_have_their_errors_and_what_they_are_to_be_compared_with() -> None:
    out = io.StringIO()
    shown = screen.Screen(Console(file=out, width=200))
    errors = {"m_a": StandardError(0.0123, "tasks"), "m_c": StandardError(12.3, "tasks")}
    beside = {"m_a": {"x": Baseline(0.4, -0.0666, 0.0123), "y": Baseline(0.3, 0.02, None)}}
    numbers = {"m_a": 0.3334, "m_b": 2.0, "m_c": 1234.5}
    for _ in range(2):
        shown.measured("m", Measured(numbers, {}, errors, beside), 2.0)
    lines = [
        "  m: m_a 0.333 ± 0.012, m_b 2, m_c 1234 ± 12  (2.0 s)",
        "    m_a beside: x 0.4 (-0.067 ± 0.012), y 0.3 (+0.02)",
    ]
    # What the signs mean is said once.
    assert out.getvalue().splitlines() == [f"  {screen.ABOUT_ERRORS}", *lines, *lines]


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (0.25, None, "0.25"),
        (0.25, 0.0, "0.25"),
        (None, None, "undefined"),
        (12345.6, 123.4, "12346 ± 123"),
        (0.9865831, 0.0000393, "0.986583 ± 0.000039"),
        (1 / 3, 3.2e-17, "0.3333 ± 3.2e-17"),
        (2.06e-9, 1.2e-10, "2.06e-09 ± 1.2e-10"),
    ],
)
def test_an_error_says_how_many_digits_are_shown(
    value: float | None, error: float | None, words: str
) -> None:
    assert screen.with_error(value, error) == words


def test_numbers_that_are_none_have_their_reason() -> None:
    out = io.StringIO()
    reasons = {"undefined": {"y": "no [table] here"}}
    screen.Screen(Console(file=out)).measured("m", Measured({"x": 1 / 3, "y": None}, reasons), 2.0)
    assert out.getvalue().splitlines() == [
        "  m: x 0.3333, y undefined  (2.0 s)",
        "    y: no [table] here",
    ]
