"""What all ranks of a run must agree on: what they do, and after which step they stop.

A rank that went on for one step more than the others would wait for them for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.storage.hashing import canonical_json, sha256_hex
from scaling.train.mesh import Mesh, Pending


class StopAgreement:
    """`stop()` for the training loop, true on all ranks after the same step.

    One flag per step, the largest over all ranks, first over the shards and then over the
    replicas. Each exchange is begun at one step and awaited at the next, so that it costs no time:
    a wish takes two steps to be heard by all.
    """

    def __init__(self, mesh: Mesh, wished: Callable[[], bool]) -> None:
        self._mesh, self._wished = mesh, wished
        self._over_shards: Pending | None = None
        self._over_replicas: Pending | None = None

    def __call__(self) -> bool:
        """Whether to stop now; every rank asks after every step."""
        agreed = self._over_replicas is not None and bool(self._over_replicas.wait())
        if self._over_shards is not None:
            heard = self._over_shards.wait()
            self._over_replicas = self._mesh.dp.begin_max_(heard, "the wish to stop")
        self._over_shards = self._mesh.latent.begin_max_(self._flag(), "the wish to stop")
        return agreed

    def finish(self) -> None:
        """Await what is under way, after the loop."""
        for pending in (self._over_replicas, self._over_shards):
            if pending is not None:
                pending.wait()
        self._over_shards = self._over_replicas = None

    def _flag(self) -> Tensor:
        # On the CPU with every device: reading it there waits for no kernel.
        return torch.tensor([int(self._wished())], dtype=torch.int32)


def agree(mesh: Mesh, facts: Mapping[str, Any], purpose: str) -> None:
    """Raise `UserError` on all ranks, naming those that differ from rank 0, unless all facts agree.

    `purpose` is what the facts are about.
    """
    ours = _digest(facts)
    over_shards = mesh.latent.gather(ours, purpose)
    all_ranks = mesh.dp.gather(over_shards, purpose).reshape(mesh.world_size, -1)
    differing = [rank for rank, row in enumerate(all_ranks) if not torch.equal(row, all_ranks[0])]
    if differing:
        here = ", ".join(f"{key}={value}" for key, value in facts.items())
        raise UserError(
            f"{purpose}: ranks {differing} do not agree with rank 0; here on rank {mesh.rank}: "
            f"{here}. All ranks must see the same files and the same code: look at the run's "
            "folder from each node."
        )


def end_together(mesh: Mesh) -> None:
    """Return once every rank has come here."""
    agree(mesh, {}, "the end of the run")


def _digest(facts: Mapping[str, Any]) -> Tensor:
    """The facts' hash as four numbers, [4] int64."""
    digest = sha256_hex(canonical_json(dict(facts)))
    words = [int(digest[at : at + 15], 16) for at in range(0, 60, 15)]
    return torch.tensor(words, dtype=torch.int64)
