"""Resampling of dead latents: what is drawn, what is reset, and that it is the same everywhere."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.autoencoder.topk import TopKAutoencoder, TopKSpec
from scaling.distributed.latent import MeshShard
from scaling.kernels import load_kernels
from scaling.train.engine_parts import OptimizerSpec
from scaling.train.mesh import ALONE, Mesh
from scaling.train.resample import Resampling, _drawn
from scaling.train.torch_engine import TorchEngine
from tests.numerics.restated import UNIT, D, N, batch, random_weights
from tests.ranks import run_threads

DEAD = torch.tensor([3, 4, 19, 21, 39])
RULE = Resampling(every_steps=2, until_step=4, seed=7)
K = 3
ADAM: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "clip_norm": None}


def engine_on(mesh: Mesh = ALONE, rule: Resampling | None = RULE) -> TorchEngine:
    """A small one, of which DEAD never fire."""
    weights, rows = random_weights(), mesh.local_rows(N)
    weights["b_enc"][DEAD] = -1e3
    weights["w_dec"] = torch.nn.functional.normalize(weights["w_dec"], dim=1)
    local = {
        name: w if name == "b_pre" else w[rows.start : rows.stop] for name, w in weights.items()
    }
    spec = TopKSpec(d_model=D, n_latents=N, mean_predictor_mse=UNIT, k=K, k_aux=4, aux_coef=0.0)
    model = TopKAutoencoder(spec, load_kernels("torch"), local, MeshShard(mesh, N))
    optimizer = OptimizerSpec(**ADAM, ema_decay=0.9, resampling=rule)
    return TorchEngine(model, optimizer, 40, mesh)


def train(engine: TorchEngine, steps: int, mesh: Mesh = ALONE) -> None:
    for _ in range(steps):
        seed = engine.n_updates
        engine.step(batch(seed).chunk(mesh.dp.size)[mesh.dp.index], 1e-3)


def test_dead_latents_become_inputs_and_are_forgotten() -> None:
    engine, without = engine_on(), engine_on(rule=None)
    train(engine, 2)
    train(without, 2)
    dead = without.dead.ids()
    assert set(DEAD.tolist()) <= set(dead.tolist())
    state, before = engine.state(), without.state()
    living = torch.ones(N, dtype=torch.bool).index_fill(0, dead, False)
    norms = without.model.w_enc.detach().norm(dim=1)
    mean_norm = norms[living].mean()
    centered = torch.nn.functional.normalize(batch(1) - without.model.b_pre.detach(), dim=1)
    cosines = centered @ state["w_dec"][dead].T
    assert len(cosines.argmax(0).unique()) == len(dead)
    torch.testing.assert_close(cosines.amax(0), torch.ones(len(dead), dtype=torch.float64))
    torch.testing.assert_close(state["w_enc"][dead], 0.2 * mean_norm * state["w_dec"][dead])
    assert not state["b_enc"][dead].any()
    for name in ("w_enc", "w_dec", "b_enc"):
        for part in ("exp_avg", "exp_avg_sq"):
            assert not state[f"{name}.{part}"][dead].any()
        averaged = engine.weights(averaged=True)[name]
        torch.testing.assert_close(averaged[dead], state[name][dead])
    assert not state["tokens_since_fired"][dead].any()
    for name, tensor in before.items():
        rows = living if tensor.shape[:1] == (N,) else ...
        assert tensor[rows].equal(state[name][rows]), name


def test_it_happens_when_it_is_due() -> None:
    engine = engine_on()
    rows = [engine.state()["w_dec"][DEAD]]
    for _ in range(6):
        engine.dead.tokens_since_fired_N[DEAD] = 40
        train(engine, 1)
        rows.append(engine.state()["w_dec"][DEAD])
    drawn = [bool((after - earlier).norm() > 0.5) for earlier, after in pairwise(rows)]
    assert drawn == [False, True, False, True, False, False]


def test_what_was_drawn_is_the_same_again_and_another_for_another_seed() -> None:
    engines = [
        engine_on(),
        engine_on(),
        engine_on(rule=Resampling(every_steps=2, until_step=4, seed=8)),
    ]
    for engine in engines:
        train(engine, 2)
    first, again, other = (engine.state()["w_dec"] for engine in engines)
    assert first.equal(again)
    assert not first[DEAD].equal(other[DEAD])


def test_a_resumed_engine_draws_what_the_other_did() -> None:
    straight, stopped, resumed = engine_on(), engine_on(), engine_on()
    train(straight, 5)
    train(stopped, 3)
    resumed.load_state(stopped.state())
    train(resumed, 2)
    for name, tensor in straight.state().items():
        assert tensor.equal(resumed.state()[name]), name


@pytest.mark.parametrize(("dp", "latent"), [(2, 2), (1, 4), (3, 1)])
def test_on_a_mesh_the_same_rows_are_drawn(dp: int, latent: int) -> None:
    alone = engine_on()
    train(alone, 5)

    def state(mesh: Mesh) -> dict[str, Tensor]:
        engine = engine_on(mesh)
        train(engine, 5, mesh)
        engine.check_replicas()
        return engine.state()

    states = run_threads(state, dp, latent)
    for name, expected in alone.state().items():
        parts = [part[name] for part in states[:latent]]
        found = torch.cat(parts) if expected.shape[:1] == (N,) else parts[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=name)


def test_inputs_are_drawn_by_the_square_of_their_loss_and_once() -> None:
    weights, counts = torch.tensor([1.0, 0.0, 2.0, 5.0], dtype=torch.float64), torch.zeros(4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        counts[_drawn(weights, 1, generator)] += 1
    torch.testing.assert_close(counts / 2000, weights.float() / 8, rtol=0, atol=0.04)
    assert _drawn(weights, 9, generator).sort().values.tolist() == [0, 2, 3]


def test_more_dead_latents_than_inputs_wait() -> None:
    engine = engine_on()
    engine.n_updates = 1
    engine.dead.tokens_since_fired_N[DEAD] = 40
    engine.step(batch()[:2], 1e-3)
    assert engine.dead.ids().equal(DEAD[2:])
