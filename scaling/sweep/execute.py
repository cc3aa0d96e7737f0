"""Carry out the plans of a sweep: what is done is skipped, the rest runs, failures stay alone.

One process schedules; persistent workers train. The lease of a run's folder decides who does it,
so any number of launches may work on one sweep. Nothing here is needed to understand the store: a
launch that is killed at any point leaves files that the next one completes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console

from scaling.runs.record import FINAL
from scaling.runs.store import SweepStore
from scaling.sweep.groups import Plan
from scaling.sweep.interrupt import Interrupts
from scaling.sweep.mirror import Mirror
from scaling.sweep.schedule import ExecuteOptions, Schedule
from scaling.sweep.stop import heeding
from scaling.sweep.table import RunRow, print_table

__all__ = ["ExecuteOptions", "Plan", "Summary", "execute"]


@dataclass(frozen=True)
class Summary:
    rows: list[RunRow]
    """Every planned run as it stands at the end, in the order of the plans."""
    skipped: int
    """Were done before."""
    wall_s: float
    interrupted: bool = False
    goes_on: bool = False
    """Jobs go on with the rest without this launch, as it was told."""

    @property
    def exit_code(self) -> int:
        """0: all have a result (a diverged run is one); 1: some failed; 130: interrupted."""
        if self.interrupted:
            return 130
        if self.goes_on:
            return 0
        return 0 if all(row.status in FINAL for row in self.rows) else 1


class Running(Protocol):
    def run(self) -> bool | None:
        """Until all is settled, or the user interrupts. True when jobs go on without this."""
        ...


def execute(
    plans: Sequence[Plan],
    store: SweepStore,
    options: ExecuteOptions,
    console: Console,
    schedule: Callable[..., Running] = Schedule,
) -> Summary:
    """Run every plan that has no result yet, and print the table of all.

    `schedule` says by what: worker processes of this machine, or the jobs of a cluster.

    SIGINT, SIGTERM and SIGHUP stop the runs at a checkpoint; a second one kills them. Raises
    `UserError` when a record or a plan on disk is damaged or the workers cannot start.
    """
    started = time.monotonic()
    for plan in plans:
        store.folder(plan.run_id).prepare(plan.to_json())
    records = {plan.run_id: store.folder(plan.run_id).read_record() for plan in plans}
    todo = [plan for plan in plans if records[plan.run_id].status not in FINAL]
    for run_id, record in records.items():
        if record.status in FINAL:  # a kill may have come between its record and this
            store.folder(run_id).remove_checkpoints()
    if skipped := len(plans) - len(todo):
        console.print(f"{skipped} of {len(plans)} runs have a result already (on whatever mesh)")
    mirror = Mirror.start(store, options.wandb) if options.wandb else None
    goes_on = False
    with Interrupts() as interrupts, heeding(store, interrupts):
        try:
            if todo:
                running = schedule(todo, records, store, options, console, interrupts)
                goes_on = bool(running.run())
        finally:
            if mirror and (warning := mirror.finish(hurry=interrupts.count > 0)):
                console.print(warning, style="yellow", markup=False, soft_wrap=True)
        interrupted = interrupts.count > 0
    rows = [RunRow.anyhow(store.folder(plan.run_id)) for plan in plans]
    print_table(rows, console)
    wall_s = time.monotonic() - started
    return Summary(rows, len(plans) - len(todo), wall_s, interrupted, goes_on)
