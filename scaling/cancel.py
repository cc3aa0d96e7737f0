"""Stop a sweep, whatever launched it: `python -m scaling.cancel RUNS_DIR/SWEEP [--now]`.

Runs in hand write a checkpoint and become `preempted`; what waits is not begun; the next launch
goes on from there. Three ways, all taken: a wish in the sweep's folder, which launches and jobs on
any host look at; SIGTERM to the launches on this machine; scancel of the sweep's SLURM jobs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.errors import UserError
from scaling.launchers.slurm_queue import QueuedJob, SlurmJobs, cancel
from scaling.runs.store import SweepStore
from scaling.storage.process import ProcessId, is_here, is_known_dead
from scaling.sweep.stop import launches_of, request_stop

STOP_WITHIN_S = 120.0
"""For checkpoints to be written; then what is left is told, and --now is the remedy."""
_SCANCEL_AFTER_S = 90.0
"""A SLURM job that was sent SIGTERM may take this long before it is cancelled outright."""
_POLL_S = 0.5


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep_dir", type=Path)
    parser.add_argument("--now", action="store_true", help="kill; costs the work since checkpoints")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        return stop_sweep(_open(options.sweep_dir), console, now=options.now)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _open(sweep_dir: Path) -> SweepStore:
    store = SweepStore(sweep_dir.absolute())
    if not (store.folders() or SlurmJobs(store).exist or launches_of(store)):
        raise UserError(
            f"{sweep_dir} is no sweep; give the folder of one, RUNS_DIR/SWEEP (the default of a "
            "sweep named demo is runs/demo)"
        )
    return store


@dataclass(frozen=True)
class InHand:
    """What works on a sweep, or waits to."""

    jobs: dict[str, QueuedJob]
    launches: list[ProcessId]
    """On this machine."""
    holders: dict[str, ProcessId]
    """Run to the process that holds it, on any host."""

    @classmethod
    def of(cls, store: SweepStore) -> InHand:
        slurm = SlurmJobs(store)
        holders = {folder.run_id: folder.holder() for folder in store.folders()}
        return cls(
            slurm.queued() if slurm.exist else {},
            [launch for launch in launches_of(store) if is_here(launch)],
            {run: held for run, held in holders.items() if held is not None},  # type: ignore[misc]
        )

    def __bool__(self) -> bool:
        return bool(self.jobs or self.launches or self.holders)

    def lines(self) -> list[str]:
        """For people, one line each."""
        jobs = [
            f"SLURM job {job.job_id} for {run}: {job.state.lower()} {job.reason}"
            for run, job in self.jobs.items()
        ]
        launches = [f"launch {launch['pid']} on this machine" for launch in self.launches]
        held = [
            f"run {run}, held by process {held.get('pid')} on {held.get('host')}"
            for run, held in self.holders.items()
        ]
        return [*jobs, *launches, *held]


def stop_sweep(store: SweepStore, console: Console, *, now: bool = False) -> int:
    """Exit code: 0 when nothing is left running, 1 otherwise."""
    before = InHand.of(store)
    request_stop(store)
    if not before:
        console.print("nothing works on this sweep, and nothing waits to")
        return 0
    for line in before.lines():
        console.print(f"stopping {line}", markup=False)
    if now:
        _abort_tries(store, before)
    _stop_jobs(store, before, now=now)
    _stop_processes(before, now=now)
    left = _wait(store, lambda: InHand.of(store), kills=not now)
    for line in left.lines():
        console.print(f"still there: {line}", style="yellow", markup=False)
    if left:
        console.print("--now kills what this host and SLURM can reach", style="yellow")
        return 1
    console.print(f"stopped. {_counts(store)}", markup=False)
    return 0


def _stop_jobs(store: SweepStore, found: InHand, *, now: bool) -> None:
    """Jobs that wait are cancelled; those that work are asked to checkpoint first."""
    if not found.jobs:
        return
    slurm = SlurmJobs(store)
    with slurm.submitting():
        slurm.note_cancelled()
        jobs = slurm.queued().values()
    waiting = [job.job_id for job in jobs if job.waits]
    working = [job.job_id for job in jobs if not job.waits]
    cancel(waiting)
    if now:
        cancel(working)
    else:
        cancel(working, signal="TERM")


def _stop_processes(found: InHand, *, now: bool) -> None:
    """Launches stop their workers in order; only a worker that lost its launch is told itself."""
    told = [launch for launch in found.launches if launch["pid"] != os.getpid()]
    held = [h for h in found.holders.values() if "pid" in h and is_here(h)]
    if now or not told:
        told = [*told, *held]
    for process in told:
        _signal(process, signal.SIGKILL if now else signal.SIGTERM)


def _abort_tries(store: SweepStore, found: InHand) -> None:
    """End the ranks of runs of several processes, wherever they are: they outlive, for a while, a
    supervisor on another host that is killed."""
    for run_id in found.holders:
        tries = sorted(store.folder(run_id).path.glob("attempts/*/*"), key=_order)
        if tries:
            AttemptFolder(tries[-1]).abort("scaling.cancel --now")


def _order(path: Path) -> tuple[str, int]:
    return path.parent.name, int(path.name)


def _signal(process: ProcessId, number: signal.Signals) -> None:
    if not is_known_dead(process):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process["pid"], number)


def _wait(store: SweepStore, look: Callable[[], InHand], *, kills: bool) -> InHand:
    """Until nothing is left, or too long; jobs that took too long are cancelled outright."""
    started = time.monotonic()
    scancelled = False
    while left := look():
        waited_s = time.monotonic() - started
        if waited_s > STOP_WITHIN_S:
            return left
        if kills and not scancelled and waited_s > _SCANCEL_AFTER_S:
            cancel([job.job_id for job in left.jobs.values()])
            scancelled = True
        time.sleep(_POLL_S)
    return left


def _counts(store: SweepStore) -> str:
    from scaling.status import Sighting, counts

    return counts([Sighting.of(folder) for folder in store.folders()])


if __name__ == "__main__":
    sys.exit(main())
