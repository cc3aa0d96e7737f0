"""A progress bar with ETA for the preparation of activations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from scaling.activations.build import Progress as Step

PLAIN_EVERY_S = 15.0
"""Between lines where the output is not a terminal."""


@contextmanager
def harvest_bar(console: Console) -> Iterator[Callable[[Step], None]]:
    """Yields the callback that `prepare` reports to; nothing is shown before it is called."""
    if console.is_terminal:
        with _bars(console) as bars:
            tasks: dict[str, TaskID] = {}
            yield lambda step: _advance(bars, tasks, step)
    else:
        yield _PlainLines(console).show


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
    )


def _advance(bars: Progress, tasks: dict[str, TaskID], step: Step) -> None:
    if step.phase not in tasks:
        tasks[step.phase] = bars.add_task(step.phase, total=step.total, unit=step.unit)
    bars.update(tasks[step.phase], completed=step.done, total=step.total or None)


class _PlainLines:
    """One line now and then, with the time left at the pace so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.phase = ""
        self.started_s = self.shown_s = 0.0

    def show(self, step: Step) -> None:
        now_s = time.monotonic()
        if step.phase != self.phase:
            self.phase, self.started_s, self.shown_s = step.phase, now_s, 0.0
        ended = bool(step.total) and step.done >= step.total
        if now_s - self.shown_s < PLAIN_EVERY_S and not ended:
            return
        self.shown_s = now_s
        elapsed_s = now_s - self.started_s
        if not step.total:  # not known beforehand
            self.console.print(f"{step.phase}: {step.done:,} {step.unit} so far, {elapsed_s:.0f} s")
            return
        left_s = elapsed_s * (step.total - step.done) / step.done if step.done else None
        eta = "" if left_s is None or step.done >= step.total else f", ETA {left_s:.0f} s"
        self.console.print(
            f"{step.phase}: {step.done:,} of {step.total:,} {step.unit} in {elapsed_s:.0f} s{eta}"
        )
