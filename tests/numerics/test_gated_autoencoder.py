"""The gated autoencoder against its published equations, restated in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.autoencoder.dense import PenalizedSpec
from scaling.autoencoder.gated import GatedAutoencoder
from scaling.autoencoder.losses import reconstruction_loss
from tests.numerics.restated import (
    UNIT,
    D,
    N,
    Weights,
    assert_follows,
    batch,
    normal,
    random_weights,
)

SPEC = PenalizedSpec(d_model=D, n_latents=N, mean_predictor_mse=UNIT, penalty=0.3, warmup_steps=10)


def weights() -> Weights:
    return {**random_weights(), "r_mag": 0.4 * normal(N, seed=5), "b_mag": 0.5 * normal(N, seed=6)}


def restated(x: Tensor, w: Weights) -> Tensor:
    w_mag = w["r_mag"].exp()[:, None] * w["w_enc"]
    pi_gate = (x - w["b_pre"]) @ w["w_enc"].T + w["b_enc"]
    magnitude = ((x - w["b_pre"]) @ w_mag.T + w["b_mag"]).clamp_min(0)
    xhat = ((pi_gate > 0).double() * magnitude) @ w["w_dec"] + w["b_pre"]
    on = pi_gate.clamp_min(0)
    via_gate = on @ w["w_dec"].detach() + w["b_pre"].detach()
    per_token = ((x - xhat) ** 2).sum(1) + 0.3 * on.sum(1) + ((x - via_gate) ** 2).sum(1)
    return per_token.mean() / (D * UNIT)


def test_loss_and_every_gradient_follow_the_equations() -> None:
    assert_follows(GatedAutoencoder(SPEC, weights()), restated)


class DecoderLearns(GatedAutoencoder):
    """The auxiliary term through a decoder that is not held fixed."""

    def auxiliary(self, x_BD: Tensor, gate_BN: Tensor) -> Tensor:
        recon_BD = gate_BN @ self.w_dec + self.b_pre
        return reconstruction_loss(x_BD - recon_BD, self.spec.mean_predictor_mse)


class PenaltyOnMagnitudes(GatedAutoencoder):
    def priced(self, x_BD: Tensor, pre_BN: Tensor, z_BN: Tensor) -> tuple[Tensor, Tensor]:
        return z_BN.sum(dim=1).mean(), super().priced(x_BD, pre_BN, z_BN)[1]


@pytest.mark.parametrize("broken", [DecoderLearns, PenaltyOnMagnitudes])
def test_a_term_that_reaches_what_it_should_not_would_be_noticed(
    broken: type[GatedAutoencoder],
) -> None:
    with pytest.raises(AssertionError):
        assert_follows(broken(SPEC, weights()), restated)


@pytest.mark.parametrize("architecture", [GatedAutoencoder, DecoderLearns])
def test_no_gradient_of_the_auxiliary_term_comes_through_its_decode(
    architecture: type[GatedAutoencoder],
) -> None:
    """With the pre-activations held fixed, nothing is left that could move W_dec and b_pre."""
    model, x = architecture(SPEC, weights()), batch()
    pre_BN = model.projected(x).detach()
    model.auxiliary(x, model.gate(pre_BN)).backward()
    assert model.b_enc.grad is not None
    untouched = model.w_dec.grad is None and model.b_pre.grad is None
    assert untouched == (architecture is GatedAutoencoder)


def test_it_starts_as_a_relu_autoencoder_does() -> None:
    plain = random_weights()
    model = GatedAutoencoder(SPEC, {**plain, "b_enc": torch.zeros_like(plain["b_enc"])})
    z_BN = model.encode(batch()).values_BN
    torch.testing.assert_close(z_BN, model.projected(batch()).relu())
