"""Engines take up each other's states, and agree on what becomes of bad numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.autoencoder.shard import Unsharded
from scaling.distributed.latent import MeshShard
from scaling.train.engine import Engine
from scaling.train.mesh import ALONE, Mesh
from tests.distributed.cases import (
    LR,
    Case,
    N,
    batch,
    difference,
    is_per_latent,
    make_engine,
    part,
)
from tests.ranks import run_ranks, run_threads

FLOAT32 = torch.float32


def steps(engine: Engine, mesh: Mesh, first: int, stop: int) -> None:
    for step in range(first, stop):
        engine.step(part(mesh, step, FLOAT32), LR)


def handed_over(mesh: Mesh, before: str, after: str, ema: float) -> dict[str, Any]:
    """Five steps by one engine, then five by another that takes up its state."""
    shard = MeshShard(mesh, N)
    first = make_engine(Case(before, ema=ema), mesh, shard)
    assert int(first.state()["w_enc.step"]) == 0
    make_engine(Case(after, ema=ema), mesh, shard).load_state(first.state())  # before any update
    steps(first, mesh, 0, 5)
    state = first.state()
    second = make_engine(Case(after, ema=ema), mesh, shard)
    steps(second, mesh, 7, 9)  # what it knows is to be forgotten
    second.load_state(state)
    steps(first, mesh, 5, 10)
    steps(second, mesh, 5, 10)
    first.check_replicas()
    return {"expected": first.state(), "found": second.state()}


@pytest.mark.parametrize(
    ("dp", "latent", "before", "after"),
    [(2, 1, "deepspeed", "torch"), (1, 2, "fused", "deepspeed"), (1, 2, "deepspeed", "fused")],
)
def test_a_state_is_any_engine_s(
    dp: int, latent: int, before: str, after: str, tmp_path: Path
) -> None:
    """With an average of the weights and without one, in the same processes: they start slowly."""
    for rank in run_ranks(handed_over_each, dp, latent, tmp_path, before, after, (0.9, 0.0)):
        for states in rank:
            expected, found = states["expected"], states["found"]
            assert expected.keys() == found.keys()
            assert max(difference(found[name], expected[name]) for name in expected) < 1e-6


def handed_over_each(
    mesh: Mesh, before: str, after: str, emas: tuple[float, ...]
) -> list[dict[str, Any]]:
    return [handed_over(mesh, before, after, ema) for ema in emas]


def with_a_bad_batch(mesh: Mesh, engine_name: str) -> dict[str, Any]:
    """A NaN in one replica's part of a batch, on a step that nobody logs."""
    engine = make_engine(Case(engine_name), mesh, MeshShard(mesh, N))
    steps(engine, mesh, 0, 3)
    bad_BD = part(mesh, 3, FLOAT32).clone()
    if mesh.leads:
        bad_BD[1, 2] = torch.nan
    engine.step(bad_BD, LR)
    loss = engine.step(part(mesh, 4, FLOAT32), LR, measure=True).loss
    engine.check_replicas()  # broken alike is not drifted apart
    return {"loss": float(loss)}


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_step_that_breaks_the_weights_is_not_left_out_in_silence(
    engine: str, tmp_path: Path
) -> None:
    for rank in run_ranks(with_a_bad_batch, 2, 1, tmp_path, engine):
        assert not torch.tensor(rank["loss"]).isfinite()


def watched_in_a_checkpoint(mesh: Mesh) -> dict[str, Any]:
    """Exchanges that the watchdog is told of, of those a state takes besides the mesh's."""
    engine = make_engine(Case("deepspeed"), mesh, MeshShard(mesh, N))
    steps(engine, mesh, 0, 2)
    seen: list[str] = []

    @contextmanager
    def watch(name: str) -> Iterator[None]:
        seen.append(name)
        yield

    engine.watch = watch  # type: ignore[attr-defined]
    engine.state()
    return {"seen": seen}


def test_a_rank_that_hangs_while_moments_are_gathered_is_named(tmp_path: Path) -> None:
    for rank in run_ranks(watched_in_a_checkpoint, 2, 1, tmp_path):
        assert rank["seen"] == ["DeepSpeed's gathering of moments over dp"]


def drifted(mesh: Mesh, how: str) -> bool:
    engine = make_engine(Case("torch"), mesh, MeshShard(mesh, N))
    steps(engine, mesh, 0, 2)
    model = engine.model  # type: ignore[attr-defined]
    model.register_buffer("statistic", torch.ones(()))
    engine.check_replicas()
    weights = dict(model.named_parameters())
    if how == "infinite alike":
        with torch.no_grad():
            weights["b_pre"][0] = torch.inf
    if not mesh.leads:
        with torch.no_grad():
            match how:
                case "value":
                    weights["w_enc"][3, 4] += 0.1
                case "nan":
                    weights["w_enc"][3, 4] = torch.nan
                case "rows":
                    weights["w_dec"][:2] = weights["w_dec"][:2].flip(0)
                case "counter":
                    engine.tokens_since_fired()[0] += 64
                case "statistic":
                    model.statistic += 0.01
                case "average":
                    engine.average.averages["b_enc"] += 0.01  # type: ignore[attr-defined]
    try:
        engine.check_replicas()
    except RuntimeError as error:
        return "drifted apart" in str(error)
    return False


@pytest.mark.parametrize("how", ["value", "nan", "rows", "counter", "statistic", "average"])
def test_replicas_that_drift_apart_are_noticed(how: str) -> None:
    assert all(run_threads(lambda mesh: drifted(mesh, how), 2, 1))


@pytest.mark.parametrize("how", ["not at all", "infinite alike"])
def test_what_is_alike_has_not_drifted_apart(how: str) -> None:
    assert not any(run_threads(lambda mesh: drifted(mesh, how), 2, 1))
    assert not drifted(ALONE, how)


def bf16(mesh: Mesh, engine_name: str) -> dict[str, Any]:
    shard = MeshShard(mesh, N) if mesh.world_size > 1 else Unsharded()
    engine = make_engine(Case(engine_name, matmul="bf16"), mesh, shard)
    losses = [
        float(engine.step(part(mesh, step, FLOAT32), LR, measure=True).loss) for step in range(10)
    ]
    return {"losses": torch.tensor(losses), "state": engine.state()}


def test_bf16_operands_mean_the_same_on_replicas(tmp_path: Path) -> None:
    """The first losses are of the same bits; weights that differ in float32's last may later differ
    in bf16's last, by which latents that bf16 cannot tell apart trade places."""
    expected = bf16(ALONE, "torch")
    found = run_ranks(bf16, 2, 1, tmp_path, "deepspeed")[0]
    assert difference(found["losses"][:2], expected["losses"][:2]) < 1e-6
    assert difference(found["losses"], expected["losses"]) < 1e-5  # measured: 1e-7
    for name in ("w_enc", "w_dec", "b_enc", "b_pre"):
        assert difference(found["state"][name], expected["state"][name]) < 1e-5


LONG = 300
"""Steps of a run at a rate at which latents die and revive and rounding has time to grow."""
FAST = 5e-3


def test_each_step_of_a_long_run_is_that_of_one_process() -> None:
    """From a state of the run on one process, a step on shards goes to the same next state.

    Whole runs in float32 part in time, as those of two libraries do: a rounding decides between two
    latents of nearly equal pre-activation, and Adam enlarges it. Each step must not.
    """
    case = Case("fused", clip=None)
    leader = make_engine(case)
    worst = 0.0
    for step in range(LONG):
        if step % 15 == 0:
            worst = max(worst, _one_step_apart(case, leader.state(), step))
        leader.step(batch(step, FLOAT32), FAST)
    assert worst < 1e-6  # measured: 9e-8


def _one_step_apart(case: Case, state: dict[str, Any], step: int) -> float:
    def next_state(mesh: Mesh) -> dict[str, Any]:
        alone = mesh.world_size == 1
        engine = make_engine(case, mesh, Unsharded() if alone else MeshShard(mesh, N))
        rows = mesh.local_rows(N)
        engine.load_state(
            {
                name: tensor[rows.start : rows.stop] if is_per_latent(name) else tensor
                for name, tensor in state.items()
            }
        )
        engine.step(part(mesh, step, FLOAT32), FAST)
        return engine.state()

    expected, shards = next_state(ALONE), run_threads(next_state, 1, 2)
    found = {
        name: torch.cat([shard[name] for shard in shards])
        for name in ("w_enc", "w_dec", "b_enc", "tokens_since_fired")
    }
    assert torch.equal(found.pop("tokens_since_fired"), expected["tokens_since_fired"])
    return max(difference(tensor, expected[name]) for name, tensor in found.items())


def test_float64_stays_equal_through_a_long_run() -> None:
    """Where rounding is 1e-16 it has not grown to anything after as many steps."""
    case = Case("torch", "float64", clip=None)

    def final(mesh: Mesh) -> dict[str, Any]:
        alone = mesh.world_size == 1
        engine = make_engine(case, mesh, Unsharded() if alone else MeshShard(mesh, N))
        for step in range(LONG):
            engine.step(part(mesh, step, torch.float64), FAST)
        return engine.state()

    expected, shards = final(ALONE), run_threads(final, 1, 2)
    for name in ("w_enc", "w_dec", "b_enc"):
        found = torch.cat([shard[name] for shard in shards])
        assert difference(found, expected[name]) < 1e-10  # measured: 9e-16
    counters = torch.cat([shard["tokens_since_fired"] for shard in shards])
    assert torch.equal(counters, expected["tokens_since_fired"])
