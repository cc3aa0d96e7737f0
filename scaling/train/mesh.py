"""The processes of one run as the training code sees them: two axes, each a handful of sums.

A run's ranks form a grid of data-parallel replicas (axis `dp`) and shards of the latents (axis
`latent`). On one process both axes are `Alone`, on which every exchange is the identity, so that
there is one code path. `scaling.distributed` has the axes of many processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Pending(Protocol):
    """An exchange under way."""

    def wait(self) -> Tensor:
        """Its result, once it is there."""
        ...


class Axis(Protocol):
    """The ranks that differ in one coordinate. Every call is collective: all of them make it.

    `purpose` says in logs and errors what is exchanged. Results are the same bits on all ranks.
    """

    size: int
    index: int
    """Of this rank."""

    def sum_(self, tensor: Tensor, purpose: str) -> Tensor:
        """Add up the ranks' tensors, in place (contiguous); returns it."""
        ...

    def max_(self, tensor: Tensor, purpose: str) -> Tensor:
        """The elementwise largest, in place (contiguous); returns it."""
        ...

    def begin_sum_(self, tensor: Tensor, purpose: str) -> Pending:
        """As `sum_`, while the caller computes; the tensor is nobody's until `wait`."""
        ...

    def begin_max_(self, tensor: Tensor, purpose: str) -> Pending:
        """As `max_`, while the caller computes."""
        ...

    def gather(self, tensor: Tensor, purpose: str) -> Tensor:
        """The ranks' tensors, of one shape, stacked in the order of their index, [size, ...]."""
        ...

    def swap(self, tensor: Tensor, partner: int, purpose: str) -> Tensor:
        """Give the rank with index `partner` this tensor and get its, of the same shape."""
        ...


class Done:
    """An exchange that is over."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def wait(self) -> Tensor:
        return self.tensor


class Alone:
    """The axis of one rank."""

    size = 1
    index = 0

    def sum_(self, tensor: Tensor, purpose: str) -> Tensor:
        return tensor

    def max_(self, tensor: Tensor, purpose: str) -> Tensor:
        return tensor

    def begin_sum_(self, tensor: Tensor, purpose: str) -> Pending:
        return Done(tensor)

    def begin_max_(self, tensor: Tensor, purpose: str) -> Pending:
        return Done(tensor)

    def gather(self, tensor: Tensor, purpose: str) -> Tensor:
        return tensor[None]

    def swap(self, tensor: Tensor, partner: int, purpose: str) -> Tensor:
        return tensor


@dataclass(frozen=True)
class Mesh:
    """The axes of a run, and this rank's place on them."""

    dp: Axis = field(default_factory=Alone)
    latent: Axis = field(default_factory=Alone)
    device: str = "cpu"
    """Of the tensors that its axes exchange."""

    @property
    def world_size(self) -> int:
        return self.dp.size * self.latent.size

    @property
    def rank(self) -> int:
        """Shards of one replica are neighbours."""
        return self.dp.index * self.latent.size + self.latent.index

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for the run."""
        return self.rank == 0

    def sum_numbers(self, numbers: Sequence[float], axis: Axis) -> list[float]:
        """Sums over an axis in float64, the same on all its ranks."""
        both = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        return axis.sum_(both, "totals").tolist()

    def from_leader(self, tensor: Tensor) -> Tensor:
        """The leading rank's tensor, on all ranks; float, of one shape."""
        ours = (tensor if self.leads else torch.zeros_like(tensor)).to(self.device)
        return self.latent.sum_(self.dp.sum_(ours, "leader's tensor"), "leader's tensor")

    def local_rows(self, n_latents: int) -> range:
        """The latents held here, of `n_latents` (a multiple of the shards)."""
        n_local = n_latents // self.latent.size
        return range(self.latent.index * n_local, (self.latent.index + 1) * n_local)

    def owned_rows(self, n_latents: int) -> range:
        """Of the latents held here, those this rank writes down: its replicas hold them too."""
        held, dp = self.local_rows(n_latents), self.dp
        first, stop = (len(held) * i // dp.size for i in (dp.index, dp.index + 1))
        return held[first:stop]


ALONE = Mesh()
