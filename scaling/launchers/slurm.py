"""launcher=slurm: one submitit array per launch (and shape of mesh), one element per pending run.

The launch plans, prepares the run folders, submits and then only looks on: jobs do not need it.
Whoever calls it again skips what is done and what waits or works, and submits the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import submitit
from rich.console import Console
from submitit.core.utils import FailedJobError

from scaling.errors import UserError
from scaling.launcher_config import SlurmLauncherConfig
from scaling.launchers.element import NODE_AGENT, Element
from scaling.launchers.slurm_params import by_shape, run_parameters
from scaling.launchers.slurm_queue import SlurmJobs, has_slurm
from scaling.launchers.watch import Watch, how_to_follow
from scaling.malloc import KEEP_PAGES
from scaling.plan import RunPlan
from scaling.runs.record import FINAL, Record, Status
from scaling.runs.store import SweepStore
from scaling.sweep.interrupt import Interrupts
from scaling.sweep.pool import THREAD_VARIABLES
from scaling.sweep.schedule import ExecuteOptions
from scaling.sweep.stop import last_wish

MAX_TIMEOUTS = 1000
"""So often may a run reach its job's time limit and go on in a requeued job."""


@dataclass(frozen=True)
class SlurmSchedule:
    """Submits a launch's runs, then waits for them."""

    launcher: SlurmLauncherConfig
    todo: Sequence[RunPlan]
    before: Mapping[str, Record]
    store: SweepStore
    options: ExecuteOptions
    console: Console
    interrupts: Interrupts
    node_agent: str = NODE_AGENT

    def run(self) -> bool:
        """True when jobs go on without this launch."""
        left_alone = self._submit(self.todo)
        if not self.launcher.wait:
            self.console.print(how_to_follow(self.store), markup=False, soft_wrap=True)
            return True

        def take_up(ended: set[str]) -> set[str]:
            """What others had in hand and made nothing of, submitted now; once each."""
            again = [plan for plan in self.todo if plan.run_id in ended & left_alone]
            left_alone.difference_update(ended)
            again = [plan for plan in again if not self._settled_since(plan)]
            return {plan.run_id for plan in again} - self._submit(again)

        watch = Watch(self.todo, self.store, self.options, self.console, self.interrupts, take_up)
        return watch.run()

    def _submit(self, plans: Sequence[RunPlan]) -> set[str]:
        """Submit what nobody has in hand; the runs that somebody has."""
        jobs = SlurmJobs(self.store)
        with jobs.submitting():
            queued = jobs.queued()
            in_hand = {p.run_id for p in plans if p.run_id in queued or self._is_held(p)}
            self._tell("left alone", len(in_hand), "queued or in hand already")
            pending = [plan for plan in plans if plan.run_id not in in_hand]
            for shape, group in by_shape(pending, self.launcher).items():
                parameters = run_parameters(self.launcher, self.store.name, shape)
                submitted = submit(jobs, parameters, [self._element(plan) for plan in group])
                ids = [plan.run_id for plan in group]
                jobs.add(dict(zip(submitted, ids, strict=True)))
                array = submitted[0].partition("_")[0]
                where = f"{shape.nodes} nodes" if shape.nodes > 1 else "one node"
                self._tell(f"submitted as SLURM job {array}", len(group), f"{where} each")
        return in_hand

    def _settled_since(self, plan: RunPlan) -> bool:
        """Whether another launch's job has come to something with it since this one began."""
        record = self.store.folder(plan.run_id).read_record()
        failed_since = record.status is Status.failed and record != self.before[plan.run_id]
        return record.status in FINAL or failed_since

    def _is_held(self, plan: RunPlan) -> bool:
        return self.store.folder(plan.run_id).holder() is not None

    def _tell(self, what: str, n_runs: int, how: str) -> None:
        if n_runs:
            self.console.print(f"{n_runs} runs {what} ({how})", markup=False, highlight=False)

    def _element(self, plan: RunPlan) -> Element:
        threads = {name: str(self.options.threads) for name in THREAD_VARIABLES}
        return Element(
            run=str(self.store.folder(plan.run_id).path.absolute()),
            environment={**threads, **KEEP_PAGES},
            lease_timeout_s=self.options.lease_timeout_s,
            retries=self.options.retries,
            wish=last_wish(self.store),
            runner=self.options.runner,
            node_agent=self.node_agent,
            distributed=plan.mesh.world_size > 1,
        )


def submit(jobs: SlurmJobs, parameters: dict[str, Any], tasks: Sequence[Any]) -> list[str]:
    """Submit callables as one array (one job if there is one); SLURM's ids in their order.

    Raises:
        UserError: sbatch refuses, or a parameter is unknown.
    """
    executor = submitit.SlurmExecutor(folder=jobs.folder, max_num_timeout=MAX_TIMEOUTS)
    try:
        executor.update_parameters(**parameters)
        with executor.batch():
            submitted = [executor.submit(task) for task in tasks]
        return [job.job_id for job in submitted]
    except FailedJobError as error:
        raise UserError(
            f"sbatch refused the job: {str(error).strip().splitlines()[-1]} (see launcher.*: "
            "partition, account, qos, time_minutes, extra)"
        ) from error


def check_slurm() -> None:
    """Raises UserError where SLURM's commands are not on PATH."""
    if not has_slurm():
        raise UserError(
            "launcher=slurm needs sbatch, srun, squeue and scancel on PATH. Launch on a host of "
            "the cluster; dry_run=true works anywhere."
        )
