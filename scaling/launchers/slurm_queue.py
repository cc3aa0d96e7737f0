"""What of a sweep SLURM has in hand: RUNS_DIR/SWEEP/slurm.json, squeue and scancel.

slurm.json lists every job that launches have submitted for the sweep and which run each is for. It
is replaced whole by the launch that holds the lease on RUNS_DIR/SWEEP/slurm. squeue tells which of
these jobs still are; nothing here asks sacct, which many clusters lack.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.runs.provenance import now
from scaling.runs.store import SweepStore
from scaling.storage.atomic import read_json, write_json
from scaling.storage.lease import Lease

PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")
ENDED = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL",
         "DEADLINE", "PREEMPTED", "REVOKED")  # fmt: skip
COMMAND_WITHIN_S = 60.0
_SUBMITTING_WITHIN_S = 600.0


class QueueUnknown(UserError):
    """SLURM did not answer."""


@dataclass(frozen=True)
class Submission:
    """One call of sbatch."""

    jobs: dict[str, str]
    """SLURM's id of each element ("12_0") to its run, or to "harvest"."""
    submitted_at: str
    cancelled_at: str | None = None


@dataclass(frozen=True)
class QueuedJob:
    job_id: str
    run_id: str
    state: str
    """SLURM's word: PENDING, RUNNING, COMPLETING, ..."""
    reason: str = ""
    """Why it waits, or the nodes it runs on."""

    @property
    def waits(self) -> bool:
        return self.state in PENDING


class SlurmJobs:
    """The jobs of one sweep."""

    def __init__(self, store: SweepStore) -> None:
        self._path = store.path / "slurm.json"
        self.folder = store.path / "slurm"
        """Of submitit's scripts, pickles and logs."""

    @property
    def exist(self) -> bool:
        return self._path.exists()

    def submissions(self) -> list[Submission]:
        if not self.exist:
            return []
        content = read_json(self._path)
        try:
            return [Submission(**row) for row in content["submissions"]]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self._path} does not list submissions ({error}); move it away, after scancel of "
                "what squeue shows of this sweep"
            ) from error

    def add(self, jobs: dict[str, str]) -> None:
        """Write down what was just submitted. For the holder of `submitting`."""
        self._write([*self.submissions(), Submission(jobs, now())])

    def note_cancelled(self) -> None:
        """All jobs so far were cancelled on purpose. For the holder of `submitting`."""
        submissions = self.submissions()
        self._write([replace(s, cancelled_at=s.cancelled_at or now()) for s in submissions])

    def cancelled(self) -> set[str]:
        """Runs whose last job was cancelled by scaling.cancel."""
        last = {run: s for s in self.submissions() for run in s.jobs.values()}
        return {run for run, submission in last.items() if submission.cancelled_at}

    def last_job(self, run_id: str) -> str | None:
        ids = [job for s in self.submissions() for job, run in s.jobs.items() if run == run_id]
        return ids[-1] if ids else None

    def queued(self) -> dict[str, QueuedJob]:
        """Run to the job that waits or works for it.

        Raises:
            QueueUnknown: squeue does not answer.
        """
        runs = {job: run for s in self.submissions() for job, run in s.jobs.items()}
        return {job.run_id: job for job in self._in_queue(runs)}

    def _in_queue(self, runs: dict[str, str]) -> Iterator[QueuedJob]:
        arrays = sorted({job.partition("_")[0] for job in runs}, key=int)
        if not arrays:
            return
        for line in _squeue(arrays):
            job_id, state, reason = line.split("|", 2)
            if job_id in runs and state not in ENDED:
                yield QueuedJob(job_id, runs[job_id], state, reason)

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Of several launches, one at a time looks at the queue and submits."""
        deadline = time.monotonic() + _SUBMITTING_WITHIN_S
        while (lease := Lease.acquire(self.folder, timeout_s=60.0)) is None:
            if time.monotonic() > deadline:
                raise UserError(f"another launch has held {self.folder} for 10 minutes. Try again.")
            time.sleep(0.5)
        with lease:
            yield

    def log_tail(self, job_id: str, n_lines: int = 30) -> str | None:
        """The last lines of what the job's first task wrote to stderr; None if it never began."""
        path = self.log_path(job_id)
        if not path.exists():
            return None
        return "\n".join(path.read_text(errors="replace").splitlines()[-n_lines:])

    def log_path(self, job_id: str) -> Path:
        return self.folder / f"{job_id}_0_log.err"

    def _write(self, submissions: Sequence[Submission]) -> None:
        write_json(self._path, {"submissions": [asdict(s) for s in submissions]})


def cancel(job_ids: Sequence[str], *, signal: str | None = None) -> None:
    """scancel the jobs, or send their steps a signal."""
    if job_ids:
        options = [] if signal is None else [f"--signal={signal}"]
        _run(["scancel", "--quiet", *options, *job_ids])


def has_slurm() -> bool:
    return all(shutil.which(program) for program in ("sbatch", "srun", "squeue", "scancel"))


def _squeue(arrays: Sequence[str]) -> list[str]:
    command = ["squeue", "--noheader", "--array", "--format=%i|%T|%R", f"--jobs={','.join(arrays)}"]
    answer = _run(command)
    if answer.returncode == 0:
        return answer.stdout.splitlines()
    if "Invalid job id" in answer.stderr:  # all of them ended so long ago that SLURM forgot them
        return []
    raise QueueUnknown(f"squeue failed: {answer.stderr.strip()}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": COMMAND_WITHIN_S}
    try:
        return subprocess.run(command, check=False, **options)
    except FileNotFoundError as error:
        raise QueueUnknown(
            f"{command[0]} is not on this host's PATH. Do this on a host of the SLURM cluster."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise QueueUnknown(f"{command[0]} did not answer within {COMMAND_WITHIN_S:g} s") from error
