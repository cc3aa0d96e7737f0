"""The ranks of a run as threads of one process, for tests of what ranks do together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from scaling.train.mesh import Mesh

T = TypeVar("T")
_TIMEOUT_S = 60.0


class _Meeting:
    """Where the ranks of one axis lay down their tensors."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=_TIMEOUT_S)
        self.tensors: list[Tensor | None] = [None] * size
        self.purposes = [""] * size

    def all(self, index: int, tensor: Tensor, purpose: str) -> list[Tensor]:
        self.tensors[index], self.purposes[index] = tensor.clone(), purpose
        self.barrier.wait()
        assert len(set(self.purposes)) == 1, f"ranks do different things: {self.purposes}"
        laid = [tensor.clone() for tensor in self.tensors if tensor is not None]
        self.barrier.wait()
        return laid


class ThreadAxis:
    """The part of `scaling.train.mesh.Axis` that checkpoints use."""

    def __init__(self, meeting: _Meeting, size: int, index: int) -> None:
        self.meeting, self.size, self.index = meeting, size, index

    def max_(self, tensor: Tensor, purpose: str) -> Tensor:
        laid = torch.stack(self.meeting.all(self.index, tensor, purpose))
        return tensor.copy_(laid.amax(dim=0))


def thread_meshes(dp: int, latent: int) -> list[Mesh]:
    """The mesh as each of its ranks sees it."""
    over_latent = [_Meeting(latent) for _ in range(dp)]
    over_dp = [_Meeting(dp) for _ in range(latent)]
    return [
        Mesh(ThreadAxis(over_dp[j], dp, i), ThreadAxis(over_latent[i], latent, j))  # type: ignore[arg-type]
        for i in range(dp)
        for j in range(latent)
    ]


def on_all_ranks(dp: int, latent: int, work: Callable[[Mesh], T]) -> list[T]:
    """What `work` returns on each rank; the lowest rank's exception is raised."""
    meshes = thread_meshes(dp, latent)
    with ThreadPoolExecutor(len(meshes)) as pool:
        return [future.result() for future in [pool.submit(work, mesh) for mesh in meshes]]
