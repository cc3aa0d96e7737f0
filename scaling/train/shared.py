"""What the runs of one process have in common: the source of their activations and each batch."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from scaling.activations.build import open_source
from scaling.activations.source import ActivationSource
from scaling.plan import RunPlan
from scaling.train.build import DTYPES
from scaling.train.mesh import ALONE, Mesh


class Shared:
    """For runs of one `scaling.feed.Feed`, of which `plan` is any."""

    def __init__(self, plan: RunPlan, mesh: Mesh = ALONE) -> None:
        self.plan, self.mesh = plan, mesh
        self.n_runs = 0
        """How many share it, so far."""

    @cached_property
    def source(self) -> ActivationSource:
        """Opened by the first that asks. UserError, for each that asks, where it is gone."""
        return open_source(self.plan.source)

    def batch(self, step: int) -> Tensor:
        """This replica's part of batch `step`, [B, D], where the runs compute. For reading only."""
        train = self.plan.train
        batch_BD = self.source.train_batch(
            seed=train.seed,
            step=step,
            batch_tokens=train.batch_tokens,
            shuffle_block=train.shuffle_block,
            replica=self.mesh.dp.index,
            replicas=self.mesh.dp.size,
        )
        return batch_BD.to(self.plan.execution.device, DTYPES[self.plan.numerics.precision])
