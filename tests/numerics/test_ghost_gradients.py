"""Ghost gradients against their published recipe, restated in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.autoencoder.base import Autoencoder
from scaling.autoencoder.batch_topk import BatchTopKAutoencoder, BatchTopKSpec
from scaling.autoencoder.dense import PenalizedSpec
from scaling.autoencoder.ghost import ghost_loss
from scaling.autoencoder.matryoshka import MatryoshkaAutoencoder, MatryoshkaSpec
from scaling.autoencoder.relu import ReLUAutoencoder
from scaling.autoencoder.shard import Unsharded
from scaling.autoencoder.topk import TopKAutoencoder, TopKSpec, is_plain_topk
from scaling.kernels import load_kernels
from tests.numerics.restated import UNIT, D, N, Weights, assert_follows, batch, random_weights
from tests.numerics.test_relu_autoencoder import restated as relu_loss
from tests.numerics.test_topk_variants import (
    PREFIXES,
    K,
    batched_loss,
    largest,
    nested_loss,
    of_residual,
    pre_activations,
)

SHAPE: dict[str, Any] = {
    "d_model": D,
    "n_latents": N,
    "mean_predictor_mse": UNIT,
    "ghost_grads": True,
    "decoder_norm": False,
    "gradient_projection": False,
}
SELECTED: dict[str, Any] = {**SHAPE, "k": K, "k_aux": 4, "aux_coef": 0.0}
NONE, DEAD = torch.tensor([], dtype=torch.int64), torch.tensor([2, 5, 11, 17, 23, 38])
KERNELS = load_kernels("torch")


def ghost(e: Tensor, x: Tensor, w: Weights, share: float = 0.5) -> Tensor:
    """exp of the dead, at half the residual's norm, its loss as large as the residual's."""
    e = e.detach()
    g = pre_activations(x, w)[:, DEAD].exp() @ w["w_dec"][DEAD]
    ghat = g * (share * e.norm(dim=1) / g.norm(dim=1)).detach()[:, None]
    loss = of_residual(e - ghat)
    return loss * (of_residual(e) / loss).detach()


def topk_loss(x: Tensor, w: Weights, share: float = 0.5) -> Tensor:
    e = x - (largest(pre_activations(x, w), K) @ w["w_dec"] + w["b_pre"])
    return of_residual(e) + ghost(e, x, w, share)


def whole_nested_loss(x: Tensor, w: Weights) -> Tensor:
    e = x - (largest(pre_activations(x, w), K) @ w["w_dec"] + w["b_pre"])
    return nested_loss(x, w) + ghost(e, x, w)


def whole_batched_loss(x: Tensor, w: Weights) -> Tensor:
    z = pre_activations(x, w).clamp_min(0).detach()
    z *= z >= z.flatten().sort(descending=True).values[len(x) * K - 1]
    return batched_loss(x, w) + ghost(x - (z @ w["w_dec"] + w["b_pre"]), x, w)


def whole_relu_loss(x: Tensor, w: Weights) -> Tensor:
    e = x - (pre_activations(x, w).clamp_min(0) @ w["w_dec"] + w["b_pre"])
    return relu_loss(x, w, penalty=0.3) + ghost(e, x, w)


def topk() -> TopKAutoencoder:
    return TopKAutoencoder(TopKSpec(**SELECTED), KERNELS, random_weights())


def model_and_loss(name: str) -> tuple[Autoencoder, Any]:
    weights = random_weights()
    match name:
        case "topk":
            return topk(), topk_loss
        case "matryoshka":
            spec = MatryoshkaSpec(**SELECTED, prefixes=PREFIXES)
            return MatryoshkaAutoencoder(spec, KERNELS, weights), whole_nested_loss
        case "batch_topk":
            spec = BatchTopKSpec(**SELECTED, threshold_decay=0.5)
            return BatchTopKAutoencoder(spec, KERNELS, weights), whole_batched_loss
    return ReLUAutoencoder(PenalizedSpec(**SHAPE, penalty=0.3), weights), whole_relu_loss


@pytest.mark.parametrize("name", ["topk", "matryoshka", "batch_topk", "relu"])
def test_loss_and_every_gradient_follow_the_recipe(name: str) -> None:
    model, loss = model_and_loss(name)
    assert_follows(model, loss, dead=DEAD)


def test_another_share_of_the_norm_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        assert_follows(topk(), lambda x, w: topk_loss(x, w, share=0.6), dead=DEAD)


def test_it_counts_as_much_as_the_mse() -> None:
    _, losses = topk().encode_with_losses(batch(), DEAD)
    assert float(losses.total.detach()) == pytest.approx(2 * float(losses.normalized_mse))
    assert 0 < float(losses.aux) != float(losses.normalized_mse)


def test_only_the_dead_get_its_gradient() -> None:
    """Where no latent is selected, what is left is that of the ghost."""
    model = topk()
    model.b_enc.data.fill_(-1e3)
    model.b_enc.data[DEAD] -= 1.0
    model.encode_with_losses(batch(), DEAD)[1].total.backward()
    for param in (model.w_enc, model.w_dec):
        assert param.grad is not None
        touched = param.grad.to_dense().abs().sum(1) > 0
        assert touched.nonzero().flatten().equal(DEAD)


def test_large_pre_activations_do_not_overflow() -> None:
    x, pre = batch(), torch.full((len(batch()), 2), 5e3, dtype=torch.float64)
    pre = (pre + torch.tensor([0.0, 1.0])).requires_grad_()
    rows = random_weights()["w_dec"][:2]
    found = ghost_loss(x, pre, rows, UNIT, Unsharded())
    found.scaled.backward()
    small = (pre.detach() - 5e3).requires_grad_()
    expected = ghost_loss(x, small, rows, UNIT, Unsharded())
    expected.scaled.backward()
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(pre.grad, small.grad)


def test_nothing_left_to_model_is_no_loss() -> None:
    pre = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    rows = random_weights()["w_dec"][:2]
    found = ghost_loss(torch.zeros(4, D, dtype=torch.float64), pre, rows, UNIT, Unsharded())
    found.scaled.backward()
    assert float(found.scaled.detach()) == 0
    assert pre.grad is not None
    assert not pre.grad.any()


def test_fused_kernels_do_not_step_it() -> None:
    assert not is_plain_topk(topk())
    with pytest.raises(ValueError, match="one treatment at a time"):
        TopKSpec(**{**SELECTED, "aux_coef": 0.1})
