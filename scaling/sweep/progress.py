"""How far a sweep is, and two ways to show it: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scaling.runs.record import Status
from scaling.sweep.table import RunRow

HEARTBEAT_S = 15.0
"""Between plain lines while nothing finishes."""


class Job(Protocol):
    """What is told of a run while it waits or works."""

    @property
    def run_id(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def estimated_s(self) -> float | None: ...


def duration_of(job: Job) -> float:
    """To compare runs: seconds, or tokens where those are not known."""
    return float(job.tokens) if job.estimated_s is None else job.estimated_s


@dataclass
class Running:
    """The last word from a run in hand."""

    first_tokens: int | None = None  # where it began or went on
    tokens: int = 0
    tokens_per_s: float | None = None
    loss: float | None = None


class Tally:
    """What this launch has to do, has in hand and has done. Time left is judged by its own pace."""

    def __init__(self, jobs: Sequence[Job], *, n_workers: int) -> None:
        self.jobs = {job.run_id: job for job in jobs}
        self.running: dict[str, Running] = {}
        self.held: set[str] = set()
        """In hand of another launch."""
        self.settled: dict[str, Status] = {}
        self._n_workers = n_workers
        self._started_at = time.monotonic()

    def start(self, run_id: str) -> None:
        self.held.discard(run_id)
        self.running[run_id] = Running()

    def progress(self, run_id: str, row: Mapping[str, Any]) -> None:
        """Take in a row of metrics.jsonl."""
        run = self.running[run_id]
        run.tokens = row["tokens"]
        run.first_tokens = run.tokens if run.first_tokens is None else run.first_tokens
        run.tokens_per_s = row.get("perf/tokens_per_s", run.tokens_per_s)
        run.loss = row.get("train/loss", run.loss)

    def hold(self, run_id: str) -> None:
        self.running.pop(run_id, None)
        self.held.add(run_id)

    def put_back(self, run_id: str) -> None:
        self.running.pop(run_id, None)

    def settle(self, run_id: str, status: Status) -> None:
        self.put_back(run_id)
        self.held.discard(run_id)
        self.settled[run_id] = status

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_at

    @property
    def share_done(self) -> float:
        """By estimated time, 0 to 1."""
        total = sum(duration_of(self.jobs[run_id]) for run_id in self.jobs)
        left = sum(self._weight_left(run_id) for run_id in self.jobs)
        return 1 - left / total

    @property
    def eta_s(self) -> float | None:
        """At the pace so far; None before there is one."""
        left = [self._weight_left(run_id) for run_id in self.jobs]
        worked = sum(self._weight_worked(run_id) for run_id in self.jobs)
        if not worked:
            return None
        pace = worked / self.elapsed_s
        # The last run has the machine to itself, yet is no faster than one worker.
        return max(sum(left) / pace, max(left) / (pace / self._n_workers))

    def counts(self) -> str:
        """For people: "3 done, 2 running, 1 failed, 4 left"."""
        by_status = Counter(self.settled.values())
        left = len(self.jobs) - len(self.settled) - len(self.running)
        parts = [f"{by_status[Status.done]} done", f"{len(self.running)} running"]
        for status in (Status.diverged, Status.preempted):
            if by_status[status]:
                parts.append(f"{by_status[status]} {status}")
        parts += [f"{by_status[Status.failed]} failed", f"{left} left"]
        if self.held:
            parts.append(f"{len(self.held)} of them with another launch")
        return ", ".join(parts)

    def _weight_left(self, run_id: str) -> float:
        if run_id in self.settled:
            return 0.0
        run = self.running.get(run_id, Running())
        return duration_of(self.jobs[run_id]) * (1 - run.tokens / self.jobs[run_id].tokens)

    def _weight_worked(self, run_id: str) -> float:
        """Done by this launch, so without what an earlier checkpoint gave."""
        if run_id in self.settled:
            return duration_of(self.jobs[run_id])
        run = self.running.get(run_id, Running())
        done = run.tokens - (run.first_tokens or 0)
        return duration_of(self.jobs[run_id]) * done / self.jobs[run_id].tokens


class Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def show(self, tally: Tally) -> None:
        """The state now; called a few times a second."""
        ...

    def note(self, tally: Tally, row: RunRow) -> None:
        """One run has just been settled."""
        ...


def display_on(console: Console) -> Display:
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


class LineDisplay:
    """One line per settled run, and a sign of life now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_line_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def show(self, tally: Tally) -> None:
        if time.monotonic() - self._last_line_at >= HEARTBEAT_S:
            self._print(f"{tally.counts()}{_eta(tally)}")

    def note(self, tally: Tally, row: RunRow) -> None:
        self._print(f"[{len(tally.settled)}/{len(tally.jobs)}] {row.line()}")

    def _print(self, line: str) -> None:
        self._last_line_at = time.monotonic()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class BarDisplay:
    """One bar for the sweep and one for each run in hand; settled runs scroll above."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, tally: Tally) -> None:
        self._live.update(_picture(tally))

    def note(self, tally: Tally, row: RunRow) -> None:
        self._live.console.print(row.line(), markup=False, highlight=False)


def _picture(tally: Tally) -> Group:
    overall = Table.grid(padding=(0, 1))
    overall.add_row(
        Text("sweep", style="bold"),
        ProgressBar(total=1.0, completed=tally.share_done, width=30),
        f"{tally.counts()}{_eta(tally)}",
    )
    runs = Table.grid(padding=(0, 1))
    for run_id, run in tally.running.items():
        job = tally.jobs[run_id]
        bar = ProgressBar(total=job.tokens, completed=run.tokens, width=30)
        runs.add_row(job.title, bar, f"{run.tokens:,} of {job.tokens:,} tokens", _speed(run))
    return Group(overall, runs)


def _speed(run: Running) -> str:
    speed = "" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f} tok/s"
    return speed if run.loss is None else f"{speed}  loss {run.loss:.4f}"


def _eta(tally: Tally) -> str:
    return "" if tally.eta_s is None else f", ETA {duration(tally.eta_s)}"


def duration(seconds: float) -> str:
    """For people: 42 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
