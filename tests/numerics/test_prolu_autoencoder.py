"""ProLU against its published equations and synthetic gradients, restated in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scaling.autoencoder.prolu import ProLUAutoencoder, ProLUSpec
from scaling.autoencoder.relu import ReLUAutoencoder
from tests.numerics.restated import UNIT, D, N, Weights, assert_follows, batch, random_weights

SPEC = ProLUSpec(d_model=D, n_latents=N, mean_predictor_mse=UNIT, penalty=0.3, warmup_steps=10)


def with_gradient(z: Tensor, m: Tensor, b: Tensor, dz_dm: Tensor, dz_db: Tensor) -> Tensor:
    """z, whose derivatives are taken to be these: linear in m and b, about their present values."""
    return z.detach() + dz_dm * (m - m.detach()) + dz_db * (b - b.detach())


def restated(x: Tensor, w: Weights, gradient: str = "relu", *, weighted: bool = False) -> Tensor:
    m, b = (x - w["b_pre"]) @ w["w_enc"].T, w["b_enc"]
    gate = ((m > 0) & (m + b > 0)).double()
    slope = m.detach() if gradient == "ste" else torch.ones_like(m)
    extra = m.detach() if gradient == "ste" else torch.zeros_like(m)
    z = with_gradient(gate * m, m, b, gate * (1 + extra), gate * slope)
    xhat = z @ w["w_dec"] + w["b_pre"]
    l1 = z * w["w_dec"].norm(dim=1) if weighted else z
    return (((x - xhat) ** 2).sum(1) + 0.3 * l1.sum(1)).mean() / (D * UNIT)


@pytest.mark.parametrize("gradient", ["ste", "relu"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_every_gradient_follow_the_equations(gradient: str, weighted: bool) -> None:
    spec = replace(SPEC, gradient=gradient, weighted_l1=weighted)
    model = ProLUAutoencoder(spec, random_weights())
    assert_follows(model, lambda x, w: restated(x, w, gradient, weighted=weighted))


def test_the_other_gradient_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        assert_follows(ProLUAutoencoder(SPEC, random_weights()), lambda x, w: restated(x, w, "ste"))


def test_an_active_latent_keeps_its_magnitude_and_a_positive_bias_does_nothing() -> None:
    weights, x = random_weights(), batch()
    z_BN = ProLUAutoencoder(SPEC, weights).encode(x).values_BN
    m_BN = (x - weights["b_pre"]) @ weights["w_enc"].T
    assert torch.equal(z_BN[z_BN > 0], m_BN[z_BN > 0])
    positive = weights["b_enc"] > 0
    assert torch.equal(z_BN[:, positive], m_BN[:, positive].relu())
    shifted = ReLUAutoencoder(SPEC, weights).encode(x).values_BN
    negative_bias = ~positive & (weights["b_enc"] < 0)
    both = (z_BN > 0) & (shifted > 0) & negative_bias
    assert both.any()
    assert bool((z_BN[both] > shifted[both]).all())


def test_a_plain_penalty_with_free_rows_is_refused() -> None:
    free = {"decoder_norm": False, "gradient_projection": False}
    with pytest.raises(ValueError, match="plain L1"):
        replace(SPEC, **free)
    replace(SPEC, **free, weighted_l1=True)
