"""The fused engine is the torch engine: the same weights, moments, counters and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scaling.autoencoder import TopKAutoencoder, TopKSpec
from scaling.autoencoder.init import initial_weights
from scaling.kernels import load_kernels
from scaling.kernels.cpu.kernels import CpuKernels
from scaling.kernels.fused import AuxiliaryPass, LatentSums, RowGradients
from scaling.train import torch_engine
from scaling.train.engine import Engine, StepStats
from scaling.train.engine_parts import OptimizerSpec
from scaling.train.fused_engine import FusedEngine
from scaling.train.torch_engine import TorchEngine

D, N, K = 72, 300, 6
STEPS = 50
LR = 1e-3
DEAD_AFTER = 256
OPTIMIZER = OptimizerSpec(beta1=0.9, beta2=0.999, eps=6.25e-10, clip_norm=None, ema_decay=0.9)


def model(kernels: str, matmul: str, k_aux: int) -> TopKAutoencoder:
    spec = TopKSpec(
        d_model=D, n_latents=N, k=K, k_aux=k_aux, aux_coef=1 / 32, mean_predictor_mse=0.5
    )
    weights = initial_weights(N, torch.full((D,), 0.1), tied=True, seed=0, dtype=torch.float32)
    return TopKAutoencoder(spec, load_kernels(kernels, matmul), weights)


def fused(
    optimizer: OptimizerSpec = OPTIMIZER, matmul: str = "certified", k_aux: int = 32
) -> FusedEngine:
    return FusedEngine(model("cpu", matmul, k_aux), optimizer, DEAD_AFTER)


def plain(optimizer: OptimizerSpec = OPTIMIZER, k_aux: int = 32) -> TorchEngine:
    return TorchEngine(model("torch", "float32", k_aux), optimizer, DEAD_AFTER)


def batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    scale = torch.linspace(0.2, 2.0, D)  # uneven, so that latents do die
    return torch.randn(48, D, generator=generator) * scale + 0.1


def train(engine: Engine, steps: int = STEPS, first: int = 0) -> list[StepStats]:
    return [engine.step(batch(i), LR, measure=True) for i in range(first, first + steps)]


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Max difference over max value, the worst of all tensors."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - one).abs().max() / one.abs().max().clamp_min(1e-30))
        for name, one in expected.items()
    )


VARIANTS = {
    "as published": (OPTIMIZER, 32),
    "no average": (replace(OPTIMIZER, ema_decay=0.0), 32),
    "clipped": (replace(OPTIMIZER, clip_norm=0.05), 32),
    "many dead latents for k_aux": (OPTIMIZER, 4),
}


@pytest.mark.parametrize("matmul", ["float32", "onednn", "certified"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_fifty_steps_equal_the_torch_engine(
    variant: tuple[OptimizerSpec, int], matmul: str
) -> None:
    optimizer, k_aux = variant
    expected, found = plain(optimizer, k_aux), fused(optimizer, matmul, k_aux)
    stats = list(zip(train(expected), train(found), strict=True))
    assert any(0 < one.dead_fraction < 1 for one, _ in stats)  # AuxK was at work
    # Asked for are 1e-5; it is 2e-6, and a wrong constant would show between the two.
    assert largest_difference(found.state(), expected.state()) < 3e-6
    for one, other in stats:
        assert one.dead_fraction == other.dead_fraction
        for name in ("loss", "normalized_mse", "aux_loss", "grad_norm"):
            assert float(getattr(other, name)) == pytest.approx(
                float(getattr(one, name)), rel=1e-5, abs=1e-9
            )


def test_all_dead_and_none_dead() -> None:
    for silent in (0, DEAD_AFTER):
        expected, found = plain(), fused()
        for engine in (expected, found):
            engine.dead.tokens_since_fired_N[:] = silent
            stats = engine.step(batch(0), LR)
            assert stats.dead_fraction == (silent > 0)
        assert largest_difference(found.state(), expected.state()) < 1e-5


@pytest.mark.parametrize("way", ["dense", "sparse"])
def test_auxk_that_sends_no_gradient_to_its_encoder_rows_is_noticed(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defect of known packages, patched into either way of computing AuxK."""
    k_aux = 32 if way == "dense" else 4
    honest = CpuKernels.auxiliary_pass

    def dropping(*arguments: object, **named: object) -> AuxiliaryPass:
        passed = honest(*arguments, **named)  # type: ignore[arg-type]
        grads = passed.gradients
        kept = RowGradients(
            grads.ids_A, torch.zeros_like(grads.w_enc_AD), grads.w_dec_AD, grads.b_enc_A
        )
        return AuxiliaryPass(passed.squared_error, kept)

    monkeypatch.setattr(CpuKernels, "auxiliary_pass", dropping)
    expected, found = plain(k_aux=k_aux), fused(k_aux=k_aux)
    train(expected), train(found)
    assert largest_difference(found.state(), expected.state()) > 1e-3


def test_a_skipped_projection_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "remove_parallel_gradient_", lambda _grad, _rows: None)
    expected, found = plain(), fused()
    train(expected), train(found)
    assert largest_difference(found.state(), expected.state()) > 1e-2


def test_both_ways_of_auxk_agree() -> None:
    """Dense products over the dead rows, and sparse sums: chosen by cost, equal in result."""
    engine = fused()
    centered = batch(0) - engine.model.b_pre
    ids = torch.arange(0, 250)
    arguments = (centered, torch.randn(48, D), engine._latent_state(), ids, 9, -0.3)
    sparse = CpuKernels("float32").auxiliary_pass(*arguments)
    dense = library_dense(*arguments)
    assert float(sparse.squared_error) == pytest.approx(float(dense.squared_error), rel=1e-6)
    found = dict(zip(RowGradients._fields, sparse.gradients, strict=True))
    assert largest_difference(dict(zip(found, dense.gradients, strict=True)), found) < 1e-5


def library_dense(*arguments: object) -> AuxiliaryPass:
    from scaling.kernels.cpu.auxiliary import dense_pass

    return dense_pass(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, 3.0, 1e30])
def test_an_undefined_auxk_counts_as_zero(value: float) -> None:
    """No variance, or none that is finite: dead latents learn nothing, as without AuxK."""
    same = torch.full((8, D), value)
    for engine in (plain(), fused()):
        engine.dead.tokens_since_fired_N[:100] = DEAD_AFTER
        stats = engine.step(same, 0.0)
        assert stats.dead_fraction > 0
        assert float(stats.aux_loss) == 0
        active = set(engine.model.encode(same).indices_BK.flatten().tolist())
        silent = [i for i in range(100) if i not in active]
        assert not bool(engine.state()["w_dec.exp_avg"][silent].any())


def test_a_nan_in_a_clipped_batch_is_not_hidden() -> None:
    bad = batch(0)
    bad[3, 5] = torch.nan
    engine = fused(replace(OPTIMIZER, clip_norm=0.05))
    assert not engine.step(bad, LR).loss.isfinite()
    assert engine.weights()["w_enc"].isnan().any()


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_a_resumed_engine_goes_on_to_the_bit(clip_norm: float | None) -> None:
    optimizer = replace(OPTIMIZER, clip_norm=clip_norm)
    straight, first, resumed = fused(optimizer), fused(optimizer), fused(optimizer)
    train(straight, 12)
    train(first, 7)
    resumed.load_state(first.state())
    train(resumed, 5, first=7)
    expected, found = straight.state(), resumed.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_engines_take_up_each_others_state() -> None:
    first, second = plain(), fused()
    train(first, 7)
    second.load_state(first.state())
    train(first, 5, first=7), train(second, 5, first=7)
    assert largest_difference(second.state(), first.state()) < 1e-5
    first.load_state(second.state())
    assert largest_difference(first.state(), second.state()) == 0


def test_threads_do_not_change_a_bit_of_the_passes() -> None:
    """Of all that is ours; a matmul library may sum in another order with other threads."""
    first, states = fused(), []
    train(first, 3)
    centered = batch(3) - first.model.b_pre
    active, _, _ = first._pass_tokens(centered)
    for threads in (1, 2, 3):
        with threads_set_to(threads):
            engine = fused()
            engine.load_state(first.state())
            passed = engine.kernels.token_pass(centered, active, engine.model.w_dec, -0.1, None)
            grads = passed.grad_values_BK
            sums = LatentSums(active, grads, centered, passed.residual_BD, -0.1, None)
            engine._update(sums, LR)
            states.append((*passed, *engine.state().values(), *engine.shadow))
    for state in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(state, states[0], strict=True))
    fresh = first.kernels.make_shadow(engine.model.w_enc, engine.model.w_dec)
    assert all(torch.equal(a, b) for a, b in zip(engine.shadow, fresh, strict=True))


@contextmanager
def threads_set_to(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def test_a_state_of_another_shape_is_refused() -> None:
    engine = fused()
    train(engine, 1)
    state = engine.state()
    state["w_enc.exp_avg"] = state["w_enc.exp_avg"][:10]
    with pytest.raises(ValueError, match=r"w_enc\.exp_avg"):
        engine.load_state(state)
    whole = {name: tensor.clone() for name, tensor in engine.state().items()}
    del state["w_enc.exp_avg"]
    with pytest.raises(KeyError):
        engine.load_state(state)
    assert all(torch.equal(engine.state()[name], tensor) for name, tensor in whole.items())
