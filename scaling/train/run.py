"""One run from its plan to its outcome: resume, train, evaluate, keep the weights.

Called by a worker that holds the run's lease. Writes metrics.jsonl, checkpoints/ and weights/;
the worker writes record.json from the outcome returned here and only then drops the checkpoints, so
that a kill at any point in between costs no training.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from scaling.activations.build import made_live
from scaling.activations.source import ActivationSource
from scaling.hardware import device_name, fingerprint, peak_memory_bytes, reset_peak_memory
from scaling.plan import RunPlan
from scaling.runs.logger import JsonlLogger
from scaling.runs.record import RunError, RunOutcome, Status
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease, LeaseLost, Witness
from scaling.train.build import build_engine
from scaling.train.checkpoint import Checkpoints, Origin, write_tensors
from scaling.train.course import Course, OwnTime, alone, on_own_time
from scaling.train.engine import Engine
from scaling.train.guard import LossGuard
from scaling.train.loop import Ending, Observers, Row, fit
from scaling.train.mesh import ALONE, Mesh
from scaling.train.profile import StepProfiler
from scaling.train.results import (
    UNMEASURED,
    Scores,
    held_out,
    measured_results,
    planned_results,
)
from scaling.train.shared import Shared
from scaling.train.stopping import StopRule
from scaling.train.utilization import utilization

Report = Callable[[dict[str, Any]], None]

_STATUS = {
    Ending.diverged: Status.diverged,
    Ending.stopped: Status.preempted,
}


def train_run(
    folder: RunFolder, lease: Lease, report: Report, stop: Callable[[], bool]
) -> RunOutcome:
    """Carry the run in `folder` to its end, to where `stop` ends it, or to where it fails.

    Raises:
        UserError: it cannot begin: its data is gone or damaged.
        LeaseLost: another process has taken the run over.
    """
    plan = RunPlan.from_json(folder.read_plan())
    settle_torch(plan)
    shared = Shared(plan)
    return alone(course_of(shared, folder, lease, report, stop), shared.batch)


def course_of(
    shared: Shared, folder: RunFolder, lease: Lease, report: Report, stop: Callable[[], bool]
) -> Course[RunOutcome]:
    """The same, for whoever sends it the batches it asks for."""
    plan = RunPlan.from_json(folder.read_plan())
    attempt = Attempt(plan, folder, lease, report, stop, shared=shared)
    try:
        return (yield from attempt.course())
    except LeaseLost:
        raise
    except Exception as error:
        return attempt.outcome(Status.failed, error=RunError.of(error))
    finally:
        attempt.checkpoints.abandon()


Build = Callable[[RunPlan, ActivationSource, Mesh], Engine]


class Attempt:
    """One try at a run, going on from its newest sound checkpoint."""

    def __init__(
        self,
        plan: RunPlan,
        folder: RunFolder,
        lease: Witness,
        report: Report,
        stop: Callable[[], bool],
        mesh: Mesh = ALONE,
        build: Build = build_engine,
        shared: Shared | None = None,
    ) -> None:
        """On a mesh every rank makes the same attempt; the leading rank alone writes it down.

        `shared` is what other runs of this process use as well.
        """
        self.plan, self.folder, self.lease, self.mesh = plan, folder, lease, mesh
        self.report, self.stop = report, stop
        self.shared = shared or Shared(plan, mesh)
        self.source = self.shared.source
        self.shared.n_runs += 1
        self.engine = build(plan, self.source, mesh)
        self.checkpoints = Checkpoints(
            folder.checkpoints_path,
            plan.run_id,
            plan.observe.keep_checkpoints,
            plan.autoencoder.n_latents,
            mesh,
            guard=lease.check,
            timeout_s=plan.collective_timeout_s,
        )
        self.here = fingerprint(plan.execution.device, plan.execution.kernels)
        self.guard = LossGuard.of(plan.train)
        self.rule = StopRule.of(plan.train, partial(_agree, mesh))
        self.warnings: list[str] = []
        self.bit_exact = True
        self.clock = OwnTime()
        self.scores: Scores | None = None
        self.figures: dict[str, float] = {}
        self.first_step = self._resume()
        self.last_step = self.first_step

    def carry_out(self) -> RunOutcome:
        """Train, and when that comes to its end measure and keep the result."""
        return alone(self.course(), self.shared.batch)

    def course(self) -> Course[RunOutcome]:
        """The same, for whoever sends it the batches it asks for."""
        ending = yield from self.train()
        if ending is not Ending.completed:
            return self.outcome(_STATUS[ending])
        measured = self.measured()
        self.keep_weights()
        return self.outcome(Status.done, measured)

    def outcome(
        self,
        status: Status,
        measured: dict[str, Any] = UNMEASURED,
        error: RunError | None = None,
    ) -> RunOutcome:
        """What this attempt has come to by now."""
        result = planned_results(self.plan, self.last_step) | measured
        warnings = self.warnings + (self.guard.warnings if self.guard else [])
        return RunOutcome(status, result, self.cost(), warnings, error)

    def train(self) -> Course[Ending]:
        plan = self.plan
        with (
            self._logger() as logger,
            StepProfiler(
                plan.observe.profile and self.mesh.leads, self.folder.path, self.first_step
            ) as profiler,
        ):

            def log(row: Row) -> None:
                self.last_step = int(row["step"] or 0)
                row |= self.figures or self.engine.report()
                self.figures = {}
                if logger is not None:
                    logger.log(row)
                    self.report(row)

            observers = Observers(
                row=log,
                checkpoint=self._save,
                evaluation=self._evaluation,
                stop=self.stop,
                profiled_step=profiler.step,
                utilization=partial(utilization, plan, self.mesh.world_size),
                seconds=lambda: self.clock.s,
            )
            steps = fit(
                self.engine,
                plan.train,
                plan.observe,
                observers,
                first_step=self.first_step,
                guard=self.guard,
                rule=self.rule,
            )
            ending = yield from on_own_time(steps, self.clock)
            with self.clock:
                self.checkpoints.finish()
        return ending

    def _logger(self) -> AbstractContextManager[JsonlLogger | None]:
        if not self.mesh.leads:
            return nullcontext()
        return self.folder.metrics_logger(self.lease, resume_at_step=self.first_step)

    def measured(self) -> dict[str, Any]:
        """The result fields that only a finished run has."""
        assert self.scores is not None  # the last step always evaluates
        return measured_results(
            self.plan,
            self.scores,
            self.engine,
            self.source,
            self.mesh,
            steps_done=self.last_step,
            rule=self.rule,
        )

    def keep_weights(self) -> None:
        """weights/: raw and averaged weights of the finished run."""
        self.lease.check()
        self.engine.check_replicas()
        tensors = self.engine.weights()
        if self.plan.train.ema_decay:
            averaged = self.engine.weights(averaged=True)
            tensors |= {f"{name}.ema": tensor for name, tensor in averaged.items()}
        write_tensors(
            self.folder.path / "weights",
            tensors,
            {
                "run_id": self.plan.run_id,
                "identity": self.plan.identity,
                "mesh": asdict(self.plan.mesh),
            },
            self.plan.autoencoder.n_latents,
            self.mesh,
            guard=self.lease.check,
            timeout_s=self.plan.collective_timeout_s,
        )

    def cost(self) -> dict[str, Any]:
        execution, batch_tokens = self.plan.execution, self.plan.train.batch_tokens
        trained, train_s = (self.last_step - self.first_step) * batch_tokens, self.clock.s
        return {
            "train_s": train_s,
            "tokens_per_s": trained / train_s if train_s else 0.0,
            "peak_memory_bytes": peak_memory_bytes(execution.device),
            "device": device_name(execution.device),
            "bit_exact": self.bit_exact,
            "engine": execution.engine,
            "kernels": f"{execution.kernels}/{execution.matmul}",
            "threads": execution.threads,
            "mesh": [self.mesh.dp.size, self.mesh.latent.size],
            "resumed_at_step": self.first_step,
            "multiplexed": self.shared.n_runs,
            "live": made_live(self.source),
        }

    def _resume(self) -> int:
        """Take up the newest sound checkpoint, if any; returns the step to go on from."""
        found = self.checkpoints.load_newest()
        self.warnings += found.warnings
        if found.state is None:
            return 0
        self.engine.load_state(found.state)
        if self.guard is not None:
            self.guard.load_state(found.state)
        if self.rule is not None:
            self.rule.load_state(found.state)
        origin = found.origin or Origin(self.plan.execution.fingerprint, True)
        doubts = origin.doubts(self.here, self.plan.mesh)
        self.warnings += doubts
        self.bit_exact = not doubts
        return found.step

    def _evaluation(self) -> Row:
        self.figures = self.engine.report()
        self.scores = held_out(self.plan, self.engine, self.source, self.mesh)
        self.engine.report()  # of held-out tokens: not of training
        return self.scores.as_row()

    def _save(self, step: int) -> None:
        self.lease.check()
        self.engine.check_replicas()
        self.last_step = step
        self.checkpoints.finish()  # before a second snapshot takes up memory
        origin = Origin(self.here, self.bit_exact, self.plan.mesh)
        judged = (self.guard.state() if self.guard else {}) | (
            self.rule.state() if self.rule else {}
        )
        self.checkpoints.save(step, self.engine.state() | judged, origin)


def _agree(mesh: Mesh, met: bool) -> bool:
    """The leading rank's word, on all ranks: on GPUs their sums may differ in the last bit.

    No method: through its rule an attempt would hold itself, and its memory, beyond its end.
    """
    return bool(mesh.from_leader(torch.tensor([float(met)])).item())


def settle_torch(plan: RunPlan) -> None:
    """What runs of this process compute with, and where their memory is measured from."""
    torch.set_num_threads(plan.execution.threads)
    reset_peak_memory(plan.execution.device)
