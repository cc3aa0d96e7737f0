"""Waiting for jobs: progress as the run folders show it, until SLURM has none left in hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console

from scaling.launchers.slurm_queue import QueuedJob, QueueUnknown, SlurmJobs
from scaling.plan import RunPlan
from scaling.runs.record import FINAL, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.sweep.deaths import record_death
from scaling.sweep.interrupt import Interrupts
from scaling.sweep.progress import Tally, display_on
from scaling.sweep.schedule import ExecuteOptions
from scaling.sweep.stop import last_wish
from scaling.sweep.table import RunRow

LOOK_EVERY_S = 2.0
ASK_QUEUE_EVERY_S = 5.0
_SLEEP_S = 0.25


class Watch:
    """Shows what becomes of the runs; touches none that somebody works on."""

    def __init__(
        self,
        todo: Sequence[RunPlan],
        store: SweepStore,
        options: ExecuteOptions,
        console: Console,
        interrupts: Interrupts,
        take_up: Callable[[set[str]], set[str]],
    ) -> None:
        """`take_up` is told of runs without a result that have no job any more; it returns those
        for which it has submitted one."""
        self._take_up = take_up
        self._store = store
        self._jobs = SlurmJobs(store)
        self._console = console
        self._interrupts = interrupts
        self._tally = Tally(todo, n_workers=options.workers)
        self._display = display_on(console)
        self._open = {plan.run_id for plan in todo}
        self._queued: dict[str, QueuedJob] | None = None
        self._asked_at = -ASK_QUEUE_EVERY_S
        self._complained = False
        self._wish = last_wish(store)

    def run(self) -> bool:
        """Until no run of this launch waits or works. False: nothing goes on after it."""
        with self._display:
            while self._open and not self._interrupts.count:
                self._look()
                self._display.show(self._tally)
                self._sleep()
        if self._interrupts.count:
            cancelled = last_wish(self._store) != self._wish
            words = "stopped by scaling.cancel" if cancelled else how_to_follow(self._store)
            self._console.print(words, markup=False, soft_wrap=True)
        return False

    def _sleep(self) -> None:
        until = time.monotonic() + LOOK_EVERY_S
        while self._open and time.monotonic() < until and not self._interrupts.count:
            time.sleep(_SLEEP_S)
            self._display.show(self._tally)

    def _look(self) -> None:
        # The queue first: a job that ends in between is then seen as ended at the next look.
        is_new = self._ask_queue()
        ended: set[str] = set()
        for run_id in sorted(self._open):
            folder = self._store.folder(run_id)
            if folder.holder() is not None:
                self._show_progress(folder)
            elif (status := folder.status()) in FINAL:
                self._settle(run_id, status)
            elif is_new and self._queued is not None and run_id not in self._queued:
                ended.add(run_id)
            else:
                self._tally.put_back(run_id)
        for run_id in sorted(ended - self._take_up(ended)):
            self._settle_ended(self._store.folder(run_id))

    def _ask_queue(self) -> bool:
        """Whether the queue was just read anew; an answer that fails leaves what was known."""
        if time.monotonic() - self._asked_at < ASK_QUEUE_EVERY_S:
            return False
        self._asked_at = time.monotonic()
        try:
            self._queued = self._jobs.queued()
        except QueueUnknown as error:
            if not self._complained:
                self._console.print(f"{error}; asking again", style="yellow", markup=False)
            self._complained = True
            return False
        return True

    def _show_progress(self, folder: RunFolder) -> None:
        if folder.run_id not in self._tally.running:
            self._tally.start(folder.run_id)
        if rows := folder.metrics():
            self._tally.progress(folder.run_id, rows[-1])

    def _settle_ended(self, folder: RunFolder) -> None:
        """No job waits or works for the run, and it has no result."""
        status = folder.status()
        job = self._jobs.last_job(folder.run_id)
        silent = status in (Status.planned, Status.running)
        if silent and job is not None and folder.run_id not in self._jobs.cancelled():
            words = self._jobs.log_tail(job)
            if words is not None:  # it did begin
                message = f"SLURM job {job} ended without a word; {self._jobs.log_path(job)}"
                record_death(folder, message, words)
        self._settle(folder.run_id, folder.status())

    def _settle(self, run_id: str, status: Status) -> None:
        self._open.discard(run_id)
        self._tally.settle(run_id, status)
        row = RunRow.of(self._store.folder(run_id))
        self._display.note(self._tally, replace(row, status=status))


def how_to_follow(store: SweepStore) -> str:
    return (
        f"the jobs go on by themselves. To watch: python -m scaling.status {store.path} --watch; "
        f"to stop them: python -m scaling.cancel {store.path}"
    )
