"""The folder of a sweep and the folders of its runs: names, statuses, and who may write.

    RUNS_DIR/SWEEP/RUN_ID/plan.json       what to do, every number settled
                          record.json     what came of it
                          metrics.jsonl   how it went
                          checkpoints/    where it can go on
                          leases/         who works on it
                          evaluation.json what an evaluation measured later, if any did
    RUNS_DIR/SWEEP/logs/                  what the worker processes wrote to stderr

record.json is written by the holder of the run's lease only.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.runs.logger import JsonlLogger, keep_rows_up_to, read_rows
from scaling.runs.record import FINAL, Record, Status
from scaling.storage.atomic import create_json, read_json, remove_temporaries, write_json
from scaling.storage.lease import Witness, holder

_WRITTEN_WITHOUT_LEASE = ("plan.json", "wandb.json")
"""By launches and by the W&B mirror, perhaps at this moment."""
_SETTLED = ("execution",)
"""Parts of a plan that its first launch on a mesh fixes."""
_ONE_PROCESS = {"dp": 1, "latent": 1}


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def sweep(self) -> str:
        return self.path.parent.name

    @property
    def plan_path(self) -> Path:
        return self.path / "plan.json"

    @property
    def record_path(self) -> Path:
        return self.path / "record.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    def prepare(self, plan: dict[str, Any]) -> None:
        """Make the folder; bring a plan that is there already up to date, but for `execution`.

        Raises `UserError` when a plan or a record that is there is damaged.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.plan_path.exists() or not create_json(self.plan_path, plan):
            self._renew_plan(plan)
        if not self.record_path.exists():
            create_json(self.record_path, Record(self.run_id, self.sweep).to_json())

    def _renew_plan(self, plan: dict[str, Any]) -> None:
        """Take from a later launch all that cannot change the result: where the data lies now, what
        is logged, checkpointed and retried.

        How it is computed stays as the first launch settled it, or a resume would end with other
        bits; on another mesh they differ anyway. The plan of a run that somebody works on, or that
        has a result, stays as it is.
        """
        there = self.read_plan()
        if self.status() in FINAL or self.holder() is not None:
            return
        same_mesh = there.get("mesh", _ONE_PROCESS) == plan.get("mesh", _ONE_PROCESS)
        kept = {key: there[key] for key in _SETTLED if key in there} if same_mesh else {}
        write_json(self.plan_path, plan | kept)

    def read_plan(self) -> dict[str, Any]:
        """Raises `UserError` when plan.json is damaged, `FileNotFoundError` when absent."""
        plan = read_json(self.plan_path)
        if not isinstance(plan, dict):
            raise UserError(
                f"{self.plan_path} is not a plan; move the folder {self.path} away to have the run "
                "planned and done again"
            )
        return plan

    def read_record(self) -> Record:
        """The record; a run without one is planned. Raises `UserError` when it is damaged."""
        if not self.record_path.exists():
            return Record(self.run_id, self.sweep)
        row = read_json(self.record_path)
        try:
            return Record.from_json(row)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.record_path} is not a record this version can read ({error}); move the "
                f"folder {self.path} away to have the run done again"
            ) from error

    def write_record(self, record: Record, lease: Witness) -> None:
        """Raises `LeaseLost`, and writes nothing, when another process has taken the run over."""
        lease.check()
        write_json(self.record_path, record.to_json())

    def status(self) -> Status:
        return self.read_record().status

    def holder(self) -> dict[str, Any] | None:
        """The live process that works on the run (host, pid, token, age_s), if any."""
        return holder(self.path)

    def clean(self) -> None:
        """Remove what a killed holder left half-written. For the holder of the lease."""
        remove_temporaries(self.path, but_of=_WRITTEN_WITHOUT_LEASE)
        remove_temporaries(self.checkpoints_path)

    def remove_checkpoints(self) -> None:
        """For a run whose record is final: nothing will go on from them.

        What cannot be removed is left to the next launch.
        """
        shutil.rmtree(self.checkpoints_path, ignore_errors=True)

    def metrics_logger(self, lease: Witness, *, resume_at_step: int) -> JsonlLogger:
        """A logger that goes on after `resume_at_step` (0 for a fresh start) and forgets the rest.

        Its `log` raises `LeaseLost` when the run was taken over.
        """
        lease.check()
        keep_rows_up_to(self.metrics_path, resume_at_step)
        return JsonlLogger(self.metrics_path, guard=lease.check)

    def metrics(self) -> list[dict[str, Any]]:
        return read_rows(self.metrics_path)


@dataclass(frozen=True)
class SweepStore:
    path: Path
    """RUNS_DIR/SWEEP"""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def logs_path(self) -> Path:
        return self.path / "logs"

    def folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.path / run_id)

    def folders(self) -> list[RunFolder]:
        """Every run planned so far, by run id."""
        plans = sorted(self.path.glob("*/plan.json"))
        return [RunFolder(plan.parent) for plan in plans]
