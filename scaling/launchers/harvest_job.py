"""Harvesting as a SLURM job of its own: the first node leads, the others help with parts."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission

from scaling.activations import build
from scaling.activations.progress import Progress, ProgressCallback
from scaling.config import ActivationsConfig
from scaling.errors import UserError
from scaling.launcher_config import SlurmLauncherConfig
from scaling.launchers.slurm import submit
from scaling.launchers.slurm_params import harvest_parameters
from scaling.launchers.slurm_queue import QueueUnknown, SlurmJobs
from scaling.runs.store import SweepStore
from scaling.storage.atomic import read_json, write_json
from scaling.storage.hashing import canonical_json, sha256_hex

ASK_EVERY_S = 5.0
_POLL_S = 0.5
_NAME_DIGITS = 12


@dataclass
class HarvestTask:
    """A submitit task: called on each node of the job."""

    config: ActivationsConfig
    data_dir: str
    progress_path: str

    def __call__(self) -> None:
        job, data_dir = submitit.JobEnvironment(), Path(self.data_dir)
        if job.global_rank > 0:
            build.help_prepare(self.config, data_dir, job.global_rank)
            return
        try:
            # What is verified is verified by the launch, which reads it from where it will plan.
            build.prepare(
                self.config, data_dir, progress=self._tell, verify=False, nodes=job.num_tasks
            )
        except UserError as error:
            self._write({"error": str(error)})
            raise

    def checkpoint(self) -> DelayedSubmission:
        """Finished parts are on the disk: the requeued job goes on from them."""
        return DelayedSubmission(HarvestTask(self.config, self.data_dir, self.progress_path))

    def _tell(self, step: Progress) -> None:
        print(f"{step.phase}: {step.done:,} of {step.total:,} {step.unit}", flush=True)
        self._write(asdict(step))

    def _write(self, content: dict[str, object]) -> None:
        write_json(Path(self.progress_path), content)


def harvest_on_slurm(
    config: ActivationsConfig,
    data_dir: Path,
    launcher: SlurmLauncherConfig,
    store: SweepStore,
    tell: ProgressCallback,
) -> None:
    """Have a job make the activations, and wait for it. One that another launch submitted for the
    same activations is joined.

    Raises:
        UserError: the job ended and they are not there.
    """
    jobs, name = SlurmJobs(store), _name(config)
    jobs.folder.mkdir(parents=True, exist_ok=True)
    path = jobs.folder / f"{name}.progress.json"
    with jobs.submitting():
        if name not in jobs.queued():
            path.unlink(missing_ok=True)
            task = HarvestTask(config, str(data_dir.absolute()), str(path.absolute()))
            (job,) = submit(jobs, harvest_parameters(launcher, store.name), [task])
            jobs.add({job: name})
    job = jobs.last_job(name)
    assert job is not None
    _wait(jobs, name, path, tell)
    if not build.describe(config, data_dir).ready:
        raise UserError(_obituary(jobs, job, path))


def _wait(jobs: SlurmJobs, name: str, path: Path, tell: ProgressCallback) -> None:
    """Until SLURM has no such job any more, passing on what it reports."""
    started, asked, shown = time.monotonic(), float("-inf"), None
    while True:
        if time.monotonic() - asked >= ASK_EVERY_S:
            asked = time.monotonic()
            if not _is_queued(jobs, name):
                return
        progress = _read(path)
        if progress is None and shown is None:
            tell(Progress("queued", int(time.monotonic() - started), 0, "s"))
        elif progress is not None and progress != shown:
            shown = progress
            tell(progress)
        time.sleep(_POLL_S)


def _is_queued(jobs: SlurmJobs, name: str) -> bool:
    try:
        return name in jobs.queued()
    except QueueUnknown:  # a controller that restarts: ask again
        return True


def _read(path: Path) -> Progress | None:
    try:
        return Progress(**read_json(path))
    except (FileNotFoundError, UserError, TypeError):
        return None


def _obituary(jobs: SlurmJobs, job: str, path: Path) -> str:
    told = read_json(path) if path.exists() else {}
    words = told.get("error") or (jobs.log_tail(job, 1) or "(none)")
    return (
        f"the harvest, SLURM job {job}, ended without the activations; finished parts are kept, "
        f"and the same launch goes on from them. Its last words, in {jobs.log_path(job)}: {words}"
    )


def _name(config: ActivationsConfig) -> str:
    """What stands for the run in slurm.json."""
    words = json.loads(canonical_json(asdict(config)))
    return f"harvest-{sha256_hex(canonical_json(words))[:_NAME_DIGITS]}"
