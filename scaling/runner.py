"""What a worker runs by default: small runs in the worker itself, runs of many ranks by ranks.

`together` trains several small ones by turns.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from scaling.plan import RunPlan
from scaling.runs.record import RunOutcome
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease
from scaling.take_up import Report, Steps
from scaling.train.build import ENGINES
from scaling.train.run import course_of, settle_torch, train_run
from scaling.train.shared import Shared


def run(
    folder: RunFolder,
    lease: Lease,
    report: Report,
    stop: Callable[[], bool],
) -> RunOutcome:
    """A `scaling.take_up.Runner`."""
    plan = RunPlan.from_json(folder.read_plan())
    if plan.mesh.world_size == 1 and plan.execution.engine in ENGINES:
        return train_run(folder, lease, report, stop)
    # Only here: workers of small runs need no torch.distributed. DeepSpeed does, even for one rank.
    from scaling.distributed.supervise import supervise

    return supervise(folder, lease, report, stop)


def together(folder: RunFolder) -> Together:
    """For runs of one feed, of which `folder` is any."""
    return Together(RunPlan.from_json(folder.read_plan()))


class Together:
    """A `scaling.multiplex.Company`."""

    def __init__(self, plan: RunPlan) -> None:
        settle_torch(plan)
        self._shared = Shared(plan)

    def begin(
        self, folder: RunFolder, lease: Lease, report: Report, stop: Callable[[], bool]
    ) -> Steps:
        return course_of(self._shared, folder, lease, report, stop)

    def batch(self, step: int) -> Tensor:
        return self._shared.batch(step)
