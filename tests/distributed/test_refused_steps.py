"""A step whose loss is refused changes nothing, on any mesh, and all ranks are asked the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scaling.distributed.latent import MeshShard
from scaling.train.engine import Engine
from scaling.train.mesh import Mesh
from tests.distributed.cases import LR, Case, N, make_engine, part
from tests.ranks import run_ranks, run_threads


def refused(mesh: Mesh, case: Case) -> list[float]:
    """The losses that `accept` was asked about; AssertionError where a refused step did more."""
    engine = make_engine(case, mesh, MeshShard(mesh, N))
    asked: list[float] = []

    def step(index: int, answer: bool) -> bool:
        def accept(loss: float) -> bool:
            asked.append(loss)
            return answer

        return engine.step(part(mesh, index, torch.float32), LR, accept=accept).skipped

    assert not step(0, True)
    before = state_of(engine)
    assert step(1, False)
    after = state_of(engine)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not step(1, True)
    assert asked[1] == asked[2]
    assert any(not torch.equal(t, before[name]) for name, t in state_of(engine).items())
    return asked


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.state().items()}


@pytest.mark.parametrize(
    ("engine", "dp", "latent"), [("torch", 1, 1), ("torch", 2, 2), ("fused", 1, 1), ("fused", 1, 2)]
)
def test_a_refused_step_changes_nothing(engine: str, dp: int, latent: int) -> None:
    asked = run_threads(lambda mesh: refused(mesh, Case(engine)), dp, latent)
    assert all(losses == asked[0] for losses in asked)


def test_nor_with_deepspeed(tmp_path: Path) -> None:
    asked = run_ranks(refused, 2, 1, tmp_path, Case("deepspeed"))
    assert asked[0] == asked[1]
