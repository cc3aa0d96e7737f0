"""How far an evaluation is: a bar on a terminal, plain lines elsewhere, with the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from scaling.evaluation.estimate import Baseline
from scaling.evaluation.metric import Measured, Told

ABOUT_ERRORS = (
    "± one standard error, of the documents, vectors, latents, tokens or tasks drawn; numbers "
    "without have none. Beside: baselines, and how far the run is from each."
)
MOST_DECIMALS = 7
PLAIN_EVERY_S = 15.0
"""Between lines where the output is not a terminal."""


class Screen:
    """Lines of what happens. Nothing is wrapped, so that a log can be searched."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._n_runs = self._n_begun = 0
        self._started_s = time.monotonic()
        self._bars: Progress | None = None
        self._lines: list[_PlainLines] = []
        self._explained = False

    def begin(self, n_runs: int) -> None:
        """From here on the pace is taken."""
        self._n_runs, self._n_begun, self._started_s = n_runs, 0, time.monotonic()

    def run(self, title: str) -> None:
        """The next run is taken up."""
        elapsed_s = time.monotonic() - self._started_s
        left_s = elapsed_s / self._n_begun * (self._n_runs - self._n_begun) if self._n_begun else 0
        eta = f", about {short_time(left_s)} left for all" if left_s >= 1 else ""
        self._n_begun += 1
        self.say(f"[{self._n_begun}/{self._n_runs}] {title}{eta}")

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def measured(self, name: str, measured: Measured, seconds: float) -> None:
        """The numbers of a metric with their errors and baselines, and why some are none."""
        if not self._explained and measured.standard_errors:
            self._explained = True
            self.say(f"  {ABOUT_ERRORS}")
        errors = measured.standard_errors
        numbers = ", ".join(
            f"{column} {with_error(value, errors[column].value if column in errors else None)}"
            for column, value in measured.numbers.items()
        )
        self.say(f"  {name}: {numbers}  ({seconds:.1f} s)")
        for column, baselines in measured.baselines.items():
            beside = ", ".join(_beside(*item) for item in baselines.items())
            if beside:
                self.say(f"    {column} beside: {beside}")
        for column, why in measured.notes.get("undefined", {}).items():
            self.say(f"    {column}: {why}")

    @contextmanager
    def metric(self, name: str) -> Iterator[Told]:
        """Yields what a metric reports its progress to, or something that it waits for within."""
        if not self._console.is_terminal:
            with self._plain(name) as told:
                yield told
        elif self._bars is not None:
            with _bar(self._bars, name) as told:
                yield told
        else:
            with self._new_bars() as self._bars:
                try:
                    task = self._bars.add_task(name, total=1)
                    yield partial(_update, self._bars, task)
                finally:
                    self._bars = None

    @contextmanager
    def _plain(self, name: str) -> Iterator[Told]:
        self._lines.append(_PlainLines(self, name))
        try:
            yield self._lines[-1]
        finally:
            self._lines.pop()
            for around in self._lines:
                around.begin_again()

    def _new_bars(self) -> Progress:
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self._console, transient=True)


@contextmanager
def _bar(bars: Progress, name: str) -> Iterator[Told]:
    """Below those that are there."""
    task = bars.add_task(name, total=1)
    try:
        yield partial(_update, bars, task)
    finally:
        bars.remove_task(task)


def _update(bars: Progress, task: TaskID, done: int, total: int) -> None:
    bars.update(task, completed=done, total=total)


class _PlainLines:
    """A line now and then, with the time left at the pace so far."""

    def __init__(self, screen: Screen, name: str) -> None:
        self._screen, self._name = screen, name
        self._started_s = self._said_s = time.monotonic()
        self._first = self._done = 0

    def begin_again(self) -> None:
        """Take the pace from here on: what was waited for is no measure of the rest."""
        self._started_s, self._first = time.monotonic(), self._done

    def __call__(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if done < self._done:  # a metric's next phase
            self._started_s, self._first = now_s, done
        self._done = done
        if now_s - self._said_s < PLAIN_EVERY_S or not self._first < done < total:
            return
        self._said_s = now_s
        left_s = (now_s - self._started_s) * (total - done) / (done - self._first)
        self._screen.say(f"  {self._name}: {done:,} of {total:,}, about {short_time(left_s)} left")


def with_error(value: float | None, error: float | None) -> str:
    """For people: the error to two digits, and the value as far; "undefined" where it is None."""
    if value is None:
        return "undefined"
    if not error:
        return format(value, ".4g")
    digits = max(0, 1 - math.floor(math.log10(error)))
    if digits > MOST_DECIMALS:  # rounding, or of a value that is as small
        return f"{value:.4g} ± {error:.2g}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _beside(name: str, baseline: Baseline) -> str:
    return f"{name} {baseline.value:.4g} ({_signed(baseline)})"


def _signed(baseline: Baseline) -> str:
    text = with_error(baseline.difference, baseline.standard_error)
    return text if baseline.difference < 0 else f"+{text}"


def short_time(seconds: float) -> str:
    """For people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
