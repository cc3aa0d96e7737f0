"""What the ranks of a mesh send, counted, is what the budget says they send.

Our collectives are counted where they pass (`scaling.distributed.traffic`), DeepSpeed's by its own
log of communication.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.budget import Shape, transfers
from scaling.distributed.latent import MeshShard
from scaling.sweep.execution import native_problem
from scaling.train.mesh import Mesh
from tests.distributed.cases import DTYPES, LR, B, Case, D, K, N, make_engine, part
from tests.ranks import run_ranks, run_threads

K_AUX = 16
"""Of tests.distributed.cases."""
DEAD_SHARE = 1 / 8
Sent = Counter[tuple[str, str, str]]
"""Payload bytes of one step by (axis, operation, purpose)."""


def counted(mesh: Any, cases: list[Case]) -> list[dict[str, Any]]:
    """On a rank, for each case: the second step, with an eighth of each shard's latents dead."""
    return [_counted(mesh, case) for case in cases]


def _counted(mesh: Any, case: Case) -> dict[str, Any]:
    shard = MeshShard(mesh, N, exchange=case.exchange)
    engine = make_engine(case, mesh, shard)
    dtype = DTYPES[case.dtype]
    engine.step(part(mesh, 0, dtype), LR)
    silent_N = engine.tokens_since_fired()
    silent_N.zero_()
    silent_N[: len(silent_N) // 8] = 10**9
    log = _deepspeed_log() if case.engine == "deepspeed" else None
    mesh.traffic.reset()
    engine.step(part(mesh, 1, dtype), LR)
    return {
        "ours": Counter({tuple(key): n for key, n in mesh.traffic.payload_bytes.items()}),
        "deepspeed": {} if log is None else _read(log),
    }


def _deepspeed_log() -> Any:
    import deepspeed.comm as comm

    comm.configure(enabled=True, prof_all=True, verbose=False, debug=False)
    comm.comms_logger.comms_dict.clear()
    return comm.comms_logger


def _read(log: Any) -> dict[tuple[str, int], int]:
    """Calls by (operation, payload bytes): its log does not tell groups apart."""
    names = {"all_gather_into_tensor": "all_gather"}
    return {
        (names.get(operation, operation), size): calls[0]
        for operation, sizes in log.comms_dict.items()
        for size, calls in sizes.items()
    }


def shape_of(case: Case, dp: int, latent: int, capacity_factor: float | None = None) -> Shape:
    return Shape(
        n_latents=N,
        d_model=D,
        k=K,
        batch_tokens=B,
        k_aux=K_AUX,
        dead_share=DEAD_SHARE,
        dp=dp,
        latent=latent,
        engine=case.engine,
        zero_stage=case.zero_stage if case.engine == "deepspeed" else 0,
        exchange=case.exchange,
        capacity_factor=capacity_factor,
        precision=case.dtype,
        clip=case.clip is not None,
    )


def predicted(shape: Shape) -> tuple[Sent, dict[tuple[str, int], int]]:
    """Ours, and DeepSpeed's as its log has them."""
    ours: Counter[tuple[str, str, str]] = Counter()
    theirs: Counter[tuple[str, int]] = Counter()
    for transfer in transfers(shape):
        if transfer.purpose.startswith("DeepSpeed"):
            theirs[transfer.operation, int(transfer.payload_bytes)] += transfer.times
        else:
            key = (transfer.axis, transfer.operation, transfer.purpose)
            ours[key] += transfer.times * int(transfer.payload_bytes)
    if shape.engine == "deepspeed" and shape.dp == 1:
        # Calls on a group of one process, which sends nothing.
        theirs["all_reduce", shape.local_params * 4] += 1
        theirs["all_reduce", 4] += 1
    return ours, dict(theirs)


@pytest.mark.parametrize("mesh", [(2, 1), (1, 2), (2, 2), (1, 4)], ids=str)
def test_bytes_are_those_of_the_formula(mesh: tuple[int, int], tmp_path: Path) -> None:
    """To the byte, for every axis, operation and purpose."""
    dp, latent = mesh
    cases = [
        Case(engine="torch"),
        Case(engine="torch", clip=None, dtype="float64", exchange="butterfly"),
        Case(engine="deepspeed"),
        Case(engine="deepspeed", zero_stage=2, clip=None),
    ]
    if dp == 1 and not native_problem():
        fused = [Case(engine="fused"), Case(engine="fused", clip=None, exchange="butterfly")]
        cases = fused + cases
    for on_rank in run_ranks(counted, dp, latent, tmp_path, cases):
        for case, found in zip(cases, on_rank, strict=True):
            ours, theirs = predicted(shape_of(case, dp, latent))
            assert found["ours"] == ours, case
            assert found["deepspeed"] == theirs, case


def test_the_comparison_can_fail() -> None:
    shape = shape_of(Case(engine="torch"), 2, 2)
    for other in (
        replace(shape, k=K + 1),
        replace(shape, exchange="butterfly"),
        replace(shape, clip=False),
        replace(shape, dead_share=0.0),
        replace(shape, engine="deepspeed", zero_stage=1),
    ):
        assert predicted(other) != predicted(shape)


def first_selection(mesh: Mesh, shard: MeshShard) -> int:
    """On a rank (a thread): payload bytes of the candidates of one code, without AuxK's."""
    engine = make_engine(Case(engine="torch"), mesh, shard)
    engine.scorer().reconstruct(part(mesh, 0, torch.float32))
    sent = mesh.latent.sent  # type: ignore[attr-defined]
    return sum(size for _, purpose, size in sent if purpose == "candidates")


def test_rows_looked_at_twice_are_counted() -> None:
    """How many there are depends on the data: one shard of these cases is hot."""
    shape = shape_of(Case(exchange="candidates"), 1, 4)
    offered = next(t for t in transfers(shape) if t.purpose == "candidates" and not t.note)

    def on_rank(mesh: Mesh) -> tuple[int, int]:
        shard = MeshShard(mesh, N, exchange="candidates")
        return first_selection(mesh, shard), shard.counts.redone

    for sent, redone in run_threads(on_rank, 1, 4):
        assert redone > 0
        assert sent == offered.payload_bytes + redone * K * 4


def test_a_capacity_limits_what_is_sent() -> None:
    shape = shape_of(Case(), 1, 4, capacity_factor=2.0)
    offered = next(t for t in transfers(shape) if t.purpose == "candidates")

    def on_rank(mesh: Mesh) -> int:
        return first_selection(mesh, MeshShard(mesh, N, capacity_factor=2.0))

    assert run_threads(on_rank, 1, 4) == [offered.payload_bytes] * 4
