"""The ReLU autoencoder against its published equations, restated in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.autoencoder.code import Dense
from scaling.autoencoder.dense import PenalizedSpec
from scaling.autoencoder.relu import ReLUAutoencoder
from tests.numerics.restated import (
    UNIT,
    D,
    N,
    Weights,
    assert_follows,
    batch,
    random_weights,
)

SPEC = PenalizedSpec(
    d_model=D,
    n_latents=N,
    mean_predictor_mse=UNIT,
    decoder_norm=False,
    gradient_projection=False,
    penalty=0.3,
    warmup_steps=10,
)


def restated(x: Tensor, w: Weights, penalty: float = 0.3) -> Tensor:
    """|x - xhat|^2 + lambda sum_i z_i |w_dec_i|, mean over tokens, over d and the unit."""
    z = ((x - w["b_pre"]) @ w["w_enc"].T + w["b_enc"]).clamp_min(0)
    xhat = z @ w["w_dec"] + w["b_pre"]
    per_token = ((x - xhat) ** 2).sum(1) + penalty * (z * w["w_dec"].norm(dim=1)).sum(1)
    return per_token.mean() / (D * UNIT)


def test_loss_and_every_gradient_follow_the_equations() -> None:
    assert_follows(ReLUAutoencoder(SPEC, random_weights()), restated)


def test_an_unweighted_penalty_would_be_noticed() -> None:
    class Unweighted(ReLUAutoencoder):
        def sparsity(self, pre_BN: Tensor, z_BN: Tensor) -> Tensor:
            return z_BN.sum(dim=1).mean()

    with pytest.raises(AssertionError):
        assert_follows(Unweighted(SPEC, random_weights()), restated)


def test_the_penalty_rises_over_the_warmup() -> None:
    assert SPEC.penalty_at(4) == pytest.approx(0.15)
    assert SPEC.penalty_at(9) == SPEC.penalty_at(10**6) == 0.3
    model = ReLUAutoencoder(SPEC, random_weights())
    assert_follows(model, lambda x, w: restated(x, w, penalty=0.15), step=4)


def test_the_loss_does_not_change_when_length_moves_from_code_to_decoder() -> None:
    """What weighting by decoder norms is for."""
    weights, none = random_weights(), torch.tensor([], dtype=torch.int64)
    scaled = {**weights, "w_enc": weights["w_enc"] / 3, "b_enc": weights["b_enc"] / 3}
    scaled["w_dec"] = weights["w_dec"] * 3
    losses = [
        float(ReLUAutoencoder(SPEC, w).encode_with_losses(batch(), none, 99)[1].total.detach())
        for w in (weights, scaled)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_decoding_a_code_gives_the_reconstruction() -> None:
    model, x = ReLUAutoencoder(SPEC, random_weights()), batch()
    code = model.encode(x)
    assert isinstance(code, Dense)
    expected = code.values_BN @ model.w_dec + model.b_pre
    torch.testing.assert_close(model.decode(code), expected)


def test_a_bias_switched_off_stays_zero_and_gets_no_gradient() -> None:
    from dataclasses import replace

    weights = {**random_weights(), "b_enc": torch.zeros(N, dtype=torch.float64)}
    model = ReLUAutoencoder(replace(SPEC, b_enc=False), weights)
    model.encode_with_losses(batch(), torch.tensor([], dtype=torch.int64))[1].total.backward()
    assert model.b_enc.grad is None
    assert model.w_enc.grad is not None


def test_a_projection_without_unit_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="gradient_projection needs decoder_norm"):
        PenalizedSpec(
            d_model=D, n_latents=N, mean_predictor_mse=1.0, penalty=0.1, decoder_norm=False
        )
