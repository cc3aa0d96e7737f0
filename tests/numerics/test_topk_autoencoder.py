"""The model and its losses against the paper's formulas, restated densely in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scaling.autoencoder import TopKAutoencoder, TopKSpec
from scaling.autoencoder.dead import DeadLatents
from scaling.autoencoder.init import (
    geometric_median,
    initial_weights,
    scale_encoder_,
    unit_rows,
)
from scaling.autoencoder.losses import auxiliary_loss
from scaling.kernels import Active, load_kernels

D, N, K, K_AUX = 12, 90, 4, 6
SPEC = TopKSpec(d_model=D, n_latents=N, k=K, k_aux=K_AUX, aux_coef=1 / 32, mean_predictor_mse=0.7)
DEAD = {"some": torch.tensor([2, 3, 11, 40, 41, 42, 43, 60, 75, 89]), "few": torch.tensor([5, 7])}


def random_model(kernels: str = "torch", seed: int = 0) -> TopKAutoencoder:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = {
        "w_enc": normal(N, D),
        "w_dec": torch.nn.functional.normalize(normal(N, D), dim=1),
        "b_enc": 0.1 * normal(N),
        "b_pre": 0.3 * normal(D),
    }
    return TopKAutoencoder(SPEC, load_kernels(kernels), weights)


def batch(n_tokens: int = 20) -> Tensor:
    return torch.randn(n_tokens, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def dense_total_loss(x: Tensor, weights: dict[str, Tensor], dead: list[int]) -> Tensor:
    """z = relu(TopK(W_enc (x - b_pre) + b_enc)); L = mse / mean-predictor mse + L_aux / 32."""
    pre = (x - weights["b_pre"]) @ weights["w_enc"].T + weights["b_enc"]

    order = pre.detach()

    def code(columns: list[int], k: int) -> Tensor:
        z = torch.zeros_like(pre)
        for token in range(len(x)):
            best = sorted(columns, key=lambda j: -float(order[token, j]))[:k]
            for j in best:
                if order[token, j] > 0:
                    z[token, j] = pre[token, j]
        return z

    xhat = code(list(range(N)), K) @ weights["w_dec"] + weights["b_pre"]
    loss = ((x - xhat) ** 2).mean() / 0.7
    if dead:
        e = (x - xhat).detach()
        ehat = code(dead, K_AUX) @ weights["w_dec"]
        loss = loss + ((e - ehat) ** 2).mean() / ((e - e.mean(0)) ** 2).mean() / 32
    return loss


@pytest.mark.parametrize("kernels", ["torch", "reference"])
@pytest.mark.parametrize("dead", [[], DEAD["some"].tolist(), DEAD["few"].tolist(), list(range(N))])
def test_loss_and_every_gradient_follow_the_formulas(kernels: str, dead: list[int]) -> None:
    model = random_model(kernels)
    x = batch()
    _, losses = model.encode_with_losses(x, torch.tensor(dead, dtype=torch.int64))
    losses.total.backward()
    leaves = {
        name: param.detach().clone().requires_grad_() for name, param in model.named_parameters()
    }
    expected = dense_total_loss(x, leaves, dead)
    expected.backward()
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-12)
    for name, param in model.named_parameters():
        assert torch.allclose(param.grad, leaves[name].grad, rtol=0, atol=1e-13), name


def test_auxk_reaches_both_rows_of_dead_latents() -> None:
    model, x = random_model(), batch()
    model.b_enc.data[DEAD["some"]] = -100.0  # never chosen by the main path
    model.b_enc.data[DEAD["some"][:3]] = -1.0
    model.encode_with_losses(x, DEAD["some"])[1].total.backward()
    for grad in (model.w_enc.grad, model.w_dec.grad):
        assert grad is not None
        assert bool((grad[DEAD["some"][:3]].abs().sum(dim=1) > 0).all())
    without = random_model()
    without.b_enc.data.copy_(model.b_enc.data)
    without.encode_with_losses(x, DEAD["some"][:0])[1].total.backward()
    assert not torch.equal(without.w_enc.grad, model.w_enc.grad)


def test_auxk_does_not_pull_the_main_reconstruction() -> None:
    """The residual is detached: no gradient of L_aux reaches latents that are alive."""
    model, x = random_model(), batch()
    _, losses = model.encode_with_losses(x, DEAD["some"])
    (aux_only,) = torch.autograd.grad(losses.total, [model.w_dec], retain_graph=True)
    (main_only,) = torch.autograd.grad(
        model.encode_with_losses(x, DEAD["some"][:0])[1].total, [model.w_dec]
    )
    alive = torch.ones(N, dtype=torch.bool)
    alive[DEAD["some"]] = False
    assert torch.allclose(aux_only[alive], main_only[alive], atol=1e-14)


def test_undefined_auxiliary_loss_counts_as_zero() -> None:
    constant = torch.ones(5, D, dtype=torch.float64)
    recon = torch.zeros_like(constant, requires_grad=True)
    loss = auxiliary_loss(constant, recon)
    loss.backward()
    assert loss.item() == 0.0
    assert recon.grad is not None
    assert bool((recon.grad == 0).all())


def test_l0_is_exactly_k_when_enough_are_positive() -> None:
    model = random_model()
    model.b_enc.data.fill_(50.0)
    active = model.encode(batch())
    assert bool(((active.values_BK > 0).sum(dim=1) == K).all())


def test_dead_latents_count_global_tokens_and_recover() -> None:
    tracker = DeadLatents(4, dead_after_tokens=20, device=torch.device("cpu"))
    fires = Active(torch.tensor([[1.0, 0.0]]), torch.tensor([[2, 3]]))
    tracker.update(tracker.fired(fires), batch_tokens=10)
    assert tracker.tokens_since_fired_N.tolist() == [10, 10, 0, 10]  # a zero value is no firing
    tracker.update(tracker.fired(fires), batch_tokens=10)
    assert tracker.ids().tolist() == [0, 1, 3]
    revived = Active(torch.tensor([[1.0]]), torch.tensor([[0]]))
    tracker.update(tracker.fired(revived), batch_tokens=10)
    assert tracker.ids().tolist() == [1, 3]


def test_initial_weights_are_tied_unit_and_pure() -> None:
    first, second = (
        initial_weights(64, torch.zeros(D), tied=True, seed=3, dtype=torch.float32)
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["w_enc"], first["w_dec"])
    assert first["w_enc"].data_ptr() != first["w_dec"].data_ptr()  # tied at init only
    assert torch.allclose(first["w_dec"].norm(dim=1), torch.ones(64))
    other = initial_weights(64, torch.zeros(D), tied=False, seed=4, dtype=torch.float32)
    assert not torch.allclose(other["w_enc"], other["w_dec"])
    assert not torch.allclose(other["w_dec"], first["w_dec"])


def test_rows_of_a_larger_model_begin_with_those_of_a_smaller() -> None:
    """What lets a shard draw its own rows: blocks have generators of their own."""
    assert torch.equal(
        unit_rows(8192, 3, seed=1, stream=0)[:4096], unit_rows(4096, 3, seed=1, stream=0)
    )


def test_scaled_encoder_reconstructs_the_norm_of_its_input() -> None:
    model = random_model()
    model.b_enc.data.zero_()
    scale_encoder_(model, seed=0)
    probe = unit_rows(256, D, seed=0, stream=2).double()
    with torch.no_grad():
        recon = model.decode(model.encode(probe + model.b_pre)) - model.b_pre
    assert float(recon.norm() / probe.norm()) == pytest.approx(1.0, rel=1e-6)


def test_geometric_median_resists_outliers_and_satisfies_its_condition() -> None:
    points = batch(400).float() + 2
    points[:40] += 1000
    median = geometric_median(points, tolerance=1e-7, max_steps=1000)
    pulls = (points - median) / (points - median).norm(dim=1, keepdim=True)
    assert float(pulls.mean(dim=0).norm()) < 1e-3  # the unit pulls cancel at the minimum
    assert float((median - 2).abs().max()) < 0.4
    assert float(points.mean(dim=0).max()) > 90  # where the mean would have gone


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k": 0}, "k=0"),
        ({"k": N + 1}, "k=91"),
        ({"k_aux": 0}, "k_aux=0"),
        ({"mean_predictor_mse": 0.0}, "mean_predictor_mse"),
        ({"mean_predictor_mse": math.nan}, "mean_predictor_mse"),
    ],
)
def test_bad_spec_is_refused(change: dict[str, float], match: str) -> None:
    fields = {name: getattr(SPEC, name) for name in SPEC.__dataclass_fields__}
    with pytest.raises(ValueError, match=match):
        TopKSpec(**(fields | change))


def _adds_b_pre(model: TopKAutoencoder) -> None:
    """Known defect: the AuxK reconstruction gets b_pre, though its target is a residual."""
    honest = model._aux_reconstruction
    model._aux_reconstruction = lambda *a: honest(*a) + model.b_pre  # type: ignore[method-assign]


def _selects_one_more(model: TopKAutoencoder) -> None:
    """Known defect: ties (here: always) keep more than k latents."""
    model.spec = replace(model.spec, k=K + 1)


def _weighs_aux_by_one(model: TopKAutoencoder) -> None:
    """Known defect: coefficient 1 instead of 1/32."""
    model.spec = replace(model.spec, aux_coef=1.0)


@pytest.mark.parametrize("defect", [_adds_b_pre, _selects_one_more, _weighs_aux_by_one])
def test_the_comparison_with_the_formulas_notices(
    defect: Callable[[TopKAutoencoder], None],
) -> None:
    model, x, dead = random_model(), batch(), DEAD["some"].tolist()
    defect(model)
    _, losses = model.encode_with_losses(x, torch.tensor(dead))
    leaves = {name: param.detach().clone() for name, param in model.named_parameters()}
    expected = dense_total_loss(x, leaves, dead)
    assert abs(losses.total.item() / expected.item() - 1) > 1e-6  # honest: below 1e-12


def test_a_reconstruction_that_is_not_finite_counts_as_zero() -> None:
    target = batch(5)
    recon = torch.full_like(target, float("nan"), requires_grad=True)
    loss = auxiliary_loss(target, recon)
    loss.backward()
    assert loss.item() == 0.0
    assert recon.grad is not None
    assert bool((recon.grad == 0).all())
