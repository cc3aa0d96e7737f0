"""The engine's step, restated: projection, clipping, Adam, unit rows, EMA, in that order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scaling.autoencoder import TopKAutoencoder, TopKSpec
from scaling.autoencoder.init import initial_weights
from scaling.kernels import load_kernels
from scaling.train import torch_engine
from scaling.train.engine_parts import OptimizerSpec
from scaling.train.torch_engine import TorchEngine

D, N, K = 10, 50, 3
OPTIMIZER = OptimizerSpec(beta1=0.9, beta2=0.999, eps=6.25e-10, clip_norm=None, ema_decay=0.9)


def engine(
    kernels: str = "torch",
    optimizer: OptimizerSpec = OPTIMIZER,
    dtype: torch.dtype = torch.float64,
    **switches: bool,
) -> TorchEngine:
    spec = TopKSpec(d_model=D, n_latents=N, k=K, k_aux=8, aux_coef=1 / 32, mean_predictor_mse=0.5)
    spec = replace(spec, **switches)
    weights = initial_weights(N, torch.full((D,), 0.1), tied=True, seed=0, dtype=dtype)
    model = TopKAutoencoder(spec, load_kernels(kernels), weights)
    return TorchEngine(model, optimizer, dead_after_tokens=64)


def batch(step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    scale = torch.linspace(0.2, 2.0, D, dtype=dtype)  # uneven, so that latents do die
    return torch.randn(16, D, generator=generator, dtype=dtype) * scale


def restated_steps(
    n_steps: int,
    lr: float,
    clip_norm: float | None,
    *,
    unit_rows: bool = True,
    project: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """Plain tensors, the reference kernels' gradients and the published formulas."""
    source = engine("reference")
    model = source.model
    m = {name: torch.zeros_like(p) for name, p in source.params.items()}
    v = {name: torch.zeros_like(p) for name, p in source.params.items()}
    ema = {name: torch.zeros_like(p) for name, p in source.params.items()}
    silent, norms = torch.zeros(N, dtype=torch.int64), []
    for t in range(1, n_steps + 1):
        x = batch(t - 1)
        active, losses = model.encode_with_losses(x, (silent >= 64).nonzero().flatten())
        grads = dict(
            zip(
                source.params,
                torch.autograd.grad(losses.total, list(source.params.values())),
                strict=True,
            )
        )
        with torch.no_grad():
            rows = model.w_dec
            along = (grads["w_dec"] * rows).sum(1, keepdim=True) * rows
            grads["w_dec"] = grads["w_dec"] - project * along
            norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads.values()))
            norms.append(norm)
            factor = 1.0 if clip_norm is None else min(1.0, clip_norm / (norm + 1e-6))
            for name, p in source.params.items():
                g = grads[name] * factor
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g * g
                p -= lr * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 6.25e-10)
            rows /= rows.norm(dim=1, keepdim=True) if unit_rows else 1.0
            for name, p in source.params.items():
                ema[name] = 0.9 * ema[name] + 0.1 * p
            silent += len(x)
            silent[active.indices_BK[active.values_BK > 0]] = 0
    corrected = {name: tensor / (1 - 0.9**n_steps) for name, tensor in ema.items()}
    return {name: p.detach() for name, p in source.params.items()}, corrected, norms


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(
        float((found[name] - expected[name]).abs().max() / expected[name].abs().max())
        for name in expected
    )


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_twenty_steps_equal_the_restatement(clip_norm: float | None) -> None:
    trained = engine(optimizer=replace(OPTIMIZER, clip_norm=clip_norm))
    stats = [trained.step(batch(step), 3e-3, measure=True) for step in range(20)]
    weights, averaged, norms = restated_steps(20, 3e-3, clip_norm)
    assert any(s.dead_fraction > 0 for s in stats)  # AuxK was at work
    assert largest_difference(trained.weights(), weights) < 1e-10
    assert largest_difference(trained.weights(averaged=True), averaged) < 1e-10
    measured = [float(s.grad_norm) for s in stats if s.grad_norm is not None]
    assert measured == pytest.approx(norms, rel=1e-9)


@pytest.mark.parametrize("unit_rows", [False, True])
def test_without_projection_and_unit_rows_it_takes_neither(unit_rows: bool) -> None:
    trained = engine(decoder_norm=unit_rows, gradient_projection=False)
    for step in range(20):
        trained.step(batch(step), 3e-3)
    weights, _, _ = restated_steps(20, 3e-3, None, unit_rows=unit_rows, project=False)
    assert largest_difference(trained.weights(), weights) < 1e-10


def _no_projection(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    patch.setattr(torch_engine, "remove_parallel_gradient_", lambda _grad, _rows: None)


def _unit_columns(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    """Known defect: the decoder normalized along the wrong dimension."""
    patch.setattr(torch_engine, "renormalize_rows_", lambda w: w.data.div_(w.data.norm(dim=0)))


def _stale_gradients(patch: pytest.MonkeyPatch, trained: TorchEngine) -> None:
    """Known defect: gradients never zeroed."""
    patch.setattr(trained.adam, "zero_grad", lambda set_to_none: None)


def _unclipped(_: pytest.MonkeyPatch, trained: TorchEngine) -> None:
    trained.spec = replace(trained.spec, clip_norm=None)


def _no_auxk(patch: pytest.MonkeyPatch, trained: TorchEngine) -> None:
    """Known defect: dead latents counted too late to be revived."""
    patch.setattr(trained.dead, "dead_after_tokens", 10**9)


@pytest.mark.parametrize(
    "defect", [_no_projection, _unit_columns, _stale_gradients, _unclipped, _no_auxk]
)
def test_the_comparison_notices(
    defect: Callable[[pytest.MonkeyPatch, TorchEngine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = engine(optimizer=replace(OPTIMIZER, clip_norm=0.05))
    defect(monkeypatch, trained)
    for step in range(20):
        trained.step(batch(step), 3e-3)
    weights, _, _ = restated_steps(20, 3e-3, 0.05)
    assert largest_difference(trained.weights(), weights) > 1e-6


def test_gradients_are_fresh_each_step() -> None:
    """At lr 0 a second identical step sees the same norm, not twice the gradient."""
    trained = engine()
    norms = [trained.step(batch(0), 0.0, measure=True).grad_norm for _ in range(2)]
    assert norms[0] is not None
    assert norms[1] is not None
    # Renormalization rounds the unit rows once more; nothing else moves.
    assert float(norms[1]) == pytest.approx(float(norms[0]), rel=1e-6)


def test_decoder_rows_stay_unit() -> None:
    trained = engine()
    for step in range(10):
        trained.step(batch(step), 1e-2)
    rows = trained.weights()["w_dec"]
    assert rows.shape == (N, D)
    assert torch.allclose(rows.norm(dim=1), torch.ones(N, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resumed_engine_goes_on_to_the_bit(dtype: torch.dtype) -> None:
    straight = engine(dtype=dtype)
    for step in range(12):
        straight.step(batch(step, dtype), 3e-3)
    first = engine(dtype=dtype)
    for step in range(7):
        first.step(batch(step, dtype), 3e-3)
    resumed = engine(dtype=dtype)
    resumed.load_state(first.state())
    for step in range(7, 12):
        resumed.step(batch(step, dtype), 3e-3)
    expected, found = straight.state(), resumed.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_state_is_a_copy() -> None:
    trained = engine()
    trained.step(batch(0), 1e-2)
    kept = trained.state()
    before = {name: tensor.clone() for name, tensor in kept.items()}
    trained.step(batch(1), 1e-2)
    assert all(torch.equal(kept[name], before[name]) for name in kept)


def test_a_state_of_another_shape_is_refused() -> None:
    trained = engine()
    trained.step(batch(0), 1e-2)
    state = trained.state()
    state["w_enc"] = state["w_enc"][:10]
    with pytest.raises(ValueError, match="w_enc"):
        trained.load_state(state)


def test_averaged_weights_are_made_once_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = engine()
    made = trained.average.corrected()
    monkeypatch.setattr(trained.average, "corrected", lambda: made)
    for name, tensor in trained.weights(averaged=True).items():
        assert tensor is made[name]
    for name, tensor in trained.weights().items():
        assert tensor.data_ptr() != trained.params[name].data_ptr()
