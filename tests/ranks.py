"""Functions run on several ranks: real processes with gloo, or threads that only look like them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaling.train.mesh import Done, Mesh, Pending

TIMEOUT_S = 240


def run_ranks(
    function: Callable[..., Any], dp: int, latent: int, folder: Path, *arguments: Any
) -> list[Any]:
    """`function(mesh, *arguments)` on dp * latent processes; their results by rank.

    The function must be importable. The first rank to fail is the one whose traceback is raised.
    """
    call = folder / "call.pickle"
    call.write_bytes(pickle.dumps((function, dp, latent, arguments)))
    ranks = [_start(call, rank, dp * latent) for rank in range(dp * latent)]
    try:
        codes = [rank.wait(TIMEOUT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    errors = [(folder / f"error-{i}.txt").read_text() for i, code in enumerate(codes) if code]
    if errors:
        raise AssertionError("\n".join(errors))
    return [pickle.loads((folder / f"result-{i}.pickle").read_bytes()) for i in range(dp * latent)]


def _start(call: Path, rank: int, world_size: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",  # asked for by DeepSpeed; the ranks meet over a file
        "MASTER_PORT": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (call.parent / f"error-{rank}.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.ranks", str(call)],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[1],
        )


def _rank_main() -> None:
    from scaling.distributed.process_group import join, leave, make_mesh

    call, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    function, dp, latent, arguments = pickle.loads(call.read_bytes())
    torch.set_num_threads(1)
    join(device="cpu", timeout_s=120, init_method=f"file://{call.parent / 'meeting'}")
    mesh = make_mesh(dp, latent, device="cpu")
    result = function(mesh, *arguments)
    (call.parent / f"result-{rank}.pickle").write_bytes(pickle.dumps(result))
    leave()


class Meeting:
    """Where the threads of one axis meet: each brings a tensor, all see all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.brought: list[Any] = [None] * size

    def exchange(self, index: int, tensor: Tensor) -> list[Tensor]:
        self.brought[index] = tensor.clone()
        self.barrier.wait()
        everything = list(self.brought)
        self.barrier.wait()
        return everything


class ThreadAxis:
    """`scaling.train.mesh.Axis` among threads of this process."""

    def __init__(self, meeting: Meeting, index: int) -> None:
        self.meeting, self.size, self.index = meeting, meeting.size, index
        self.sent: list[tuple[str, str, int]] = []
        """(operation, purpose, payload bytes) of every call."""

    def _all(self, operation: str, tensor: Tensor, purpose: str) -> list[Tensor]:
        self.sent.append((operation, purpose, tensor.numel() * tensor.element_size()))
        return self.meeting.exchange(self.index, tensor)

    def sum_(self, tensor: Tensor, purpose: str) -> Tensor:
        return tensor.copy_(torch.stack(self._all("all_reduce", tensor, purpose)).sum(0))

    def max_(self, tensor: Tensor, purpose: str) -> Tensor:
        return tensor.copy_(torch.stack(self._all("all_reduce", tensor, purpose)).amax(0))

    def begin_sum_(self, tensor: Tensor, purpose: str) -> Pending:
        return Done(self.sum_(tensor, purpose))

    def begin_max_(self, tensor: Tensor, purpose: str) -> Pending:
        return Done(self.max_(tensor, purpose))

    def gather(self, tensor: Tensor, purpose: str) -> Tensor:
        return torch.stack(self._all("all_gather", tensor, purpose))

    def swap(self, tensor: Tensor, partner: int, purpose: str) -> Tensor:
        return self._all("swap", tensor, purpose)[partner]


def run_threads(function: Callable[[Mesh], Any], dp: int, latent: int) -> list[Any]:
    """`function(mesh)` on dp * latent threads; their results by rank."""
    replicas = [Meeting(latent) for _ in range(dp)]
    shards = [Meeting(dp) for _ in range(latent)]
    results: list[Any] = [None] * (dp * latent)
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        i, j = divmod(rank, latent)
        try:
            mesh = Mesh(ThreadAxis(shards[j], i), ThreadAxis(replicas[i], j))
            results[rank] = function(mesh)
        except BaseException as error:
            errors.append(error)
            for meeting in replicas + shards:
                meeting.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(dp * latent)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broken = threading.BrokenBarrierError
    for error in sorted(errors, key=lambda e: isinstance(e, broken)):
        raise error
    return results


if __name__ == "__main__":
    _rank_main()
