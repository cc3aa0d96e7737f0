"""What a worker runs by default: small runs in the worker itself, runs of many ranks by ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scaling.plan import RunPlan
from scaling.runs.record import RunOutcome
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease
from scaling.train.build import ENGINES
from scaling.train.run import train_run


def run(
    folder: RunFolder,
    lease: Lease,
    report: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool],
) -> RunOutcome:
    """A `scaling.worker.Runner`."""
    plan = RunPlan.from_json(folder.read_plan())
    if plan.mesh.world_size == 1 and plan.execution.engine in ENGINES:
        return train_run(folder, lease, report, stop)
    # Only here: workers of small runs need no torch.distributed. DeepSpeed does, even for one rank.
    from scaling.distributed.supervise import supervise

    return supervise(folder, lease, report, stop)
