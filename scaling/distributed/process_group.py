"""The axes of a mesh of processes: torch.distributed behind `scaling.train.mesh.Axis`.

Every collective of ours passes through here: it is awaited, counted, and named in the error when
it fails or hangs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from scaling.distributed.traffic import Exchange, Traffic
from scaling.train.mesh import Alone, Axis, Mesh, Pending

Watch = Callable[[str], AbstractContextManager[object]]
"""Told what is waited for, for as long as it is."""

AXES = ("dp", "latent")


class CollectiveError(RuntimeError):
    """A collective failed: another rank is gone, or did not come in time."""


def join(*, device: str, timeout_s: float, init_method: str = "env://") -> None:
    """Meet the other ranks, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say."""
    dist.init_process_group(
        # With GPUs, too, what is only read by the CPU (the wish to stop) goes by gloo.
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        init_method,
        timeout=timedelta(seconds=timeout_s),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def leave() -> None:
    dist.destroy_process_group()


def make_mesh(
    dp: int,
    latent: int,
    *,
    device: str,
    traffic: Traffic | None = None,
    watch: Watch = lambda _: nullcontext(),
) -> ProcessMesh:
    """The mesh of the ranks that have joined, dp * latent of them."""
    grid = init_device_mesh(device, (dp, latent), mesh_dim_names=AXES)
    traffic = traffic or Traffic()
    dp_axis, latent_axis = (_axis(grid, name, traffic, watch) for name in AXES)
    return ProcessMesh(dp_axis, latent_axis, device, grid=grid, traffic=traffic, watch=watch)


def _axis(grid: DeviceMesh, name: str, traffic: Traffic, watch: Watch) -> Axis:
    group = grid.get_group(name)
    return ProcessGroupAxis(name, group, traffic, watch) if group.size() > 1 else Alone()


@dataclass(frozen=True)
class ProcessMesh(Mesh):
    """A `Mesh` whose axes are process groups."""

    grid: DeviceMesh = field(kw_only=True)
    traffic: Traffic = field(kw_only=True)
    watch: Watch = field(kw_only=True)
    """For exchanges that do not pass through its axes: DeepSpeed's own."""


class ProcessGroupAxis:
    """See `scaling.train.mesh.Axis`."""

    def __init__(self, name: str, group: dist.ProcessGroup, traffic: Traffic, watch: Watch) -> None:
        self.name = name
        self.size, self.index = group.size(), group.rank()
        self._group = group
        self._traffic = traffic
        self._watch = watch

    def sum_(self, tensor: Tensor, purpose: str) -> Tensor:
        return self.begin_sum_(tensor, purpose).wait()

    def max_(self, tensor: Tensor, purpose: str) -> Tensor:
        return self.begin_max_(tensor, purpose).wait()

    def begin_sum_(self, tensor: Tensor, purpose: str) -> Pending:
        return self._begin_reduce(tensor, dist.ReduceOp.SUM, purpose)

    def begin_max_(self, tensor: Tensor, purpose: str) -> Pending:
        return self._begin_reduce(tensor, dist.ReduceOp.MAX, purpose)

    def gather(self, tensor: Tensor, purpose: str) -> Tensor:
        tensor = tensor.contiguous()
        gathered = tensor.new_empty(self.size, *tensor.shape)
        work = dist.all_gather(list(gathered.unbind()), tensor, self._group, async_op=True)
        return self._begun("all_gather", purpose, tensor, [_sure(work)], gathered).wait()

    def swap(self, tensor: Tensor, partner: int, purpose: str) -> Tensor:
        tensor = tensor.contiguous()
        received = torch.empty_like(tensor)
        peer = dist.get_global_rank(self._group, partner)
        both = [
            dist.P2POp(dist.isend, tensor, peer, self._group),
            dist.P2POp(dist.irecv, received, peer, self._group),
        ]
        return self._begun("swap", purpose, tensor, dist.batch_isend_irecv(both), received).wait()

    def _begin_reduce(self, tensor: Tensor, how: dist.ReduceOp.RedOpType, purpose: str) -> Pending:
        work = dist.all_reduce(tensor, how, self._group, async_op=True)
        return self._begun("all_reduce", purpose, tensor, [_sure(work)], tensor)

    def _begun(
        self, operation: str, purpose: str, given: Tensor, works: list[dist.Work], result: Tensor
    ) -> Pending:
        self._traffic.count(Exchange(self.name, operation, purpose), given)
        return _Begun(f"{operation} of {purpose} over {self.name}", works, result, self._watch)


def _sure(work: dist.Work | None) -> dist.Work:
    assert work is not None  # only for ranks outside the group
    return work


class _Begun:
    """A collective under way."""

    def __init__(self, name: str, works: list[dist.Work], result: Tensor, watch: Watch) -> None:
        self.name, self.works, self.result, self.watch = name, works, result, watch

    def wait(self) -> Tensor:
        try:
            with self.watch(self.name):
                for work in self.works:
                    work.wait()
        except RuntimeError as error:
            raise CollectiveError(f"{self.name} failed: {error}") from error
        return self.result
