"""JumpReLU against its published equations and pseudo-derivatives, restated in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scaling.autoencoder.init import scale_encoder_
from scaling.autoencoder.jumprelu import JumpReLUAutoencoder, JumpReLUSpec
from scaling.autoencoder.shard import Unsharded
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

SPEC = JumpReLUSpec(
    d_model=D, n_latents=N, mean_predictor_mse=UNIT, penalty=0.3, warmup_steps=10, bandwidth=0.2
)
WIDTH = 0.2 * math.sqrt(D * UNIT)
Penalty = Callable[[Tensor], Tensor]


def weights() -> Weights:
    return {**random_weights(), "log_threshold": 0.3 * normal(N, seed=5) - 0.5}


def restated(
    x: Tensor, w: Weights, penalty: Penalty = lambda l0: l0, width: float = WIDTH
) -> Tensor:
    """The loss, in which a term stands in for each pseudo-derivative: 0, with that derivative."""
    theta = w["log_threshold"].exp()
    moved = theta - theta.detach()
    pre = (x - w["b_pre"]) @ w["w_enc"].T + w["b_enc"]
    u = ((pre - theta) / width).detach()
    kernel = ((u > -0.5) & (u < 0.5)).double()
    active = (u > 0).double()
    z = pre * active - moved * (theta.detach() / width) * kernel
    l0 = (active - moved / width * kernel).sum(1).mean()
    xhat = z @ w["w_dec"] + w["b_pre"]
    return (((x - xhat) ** 2).sum(1).mean() + 0.3 * penalty(l0)) / (D * UNIT)


def test_loss_and_every_gradient_follow_the_equations() -> None:
    assert_follows(JumpReLUAutoencoder(SPEC, weights()), restated)


def test_the_quadratic_penalty_follows_its_equation() -> None:
    model = JumpReLUAutoencoder(replace(SPEC, target_l0=3.0), weights())
    assert_follows(model, lambda x, w: restated(x, w, lambda l0: (l0 / 3.0 - 1) ** 2))


def test_a_kernel_of_another_width_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="log_threshold"):
        assert_follows(JumpReLUAutoencoder(SPEC, weights()), lambda x, w: restated(x, w, width=0.2))


def test_an_l0_that_pulls_on_the_encoder_would_be_noticed() -> None:
    class Pulling(JumpReLUAutoencoder):
        def sparsity(self, pre_BN: Tensor, z_BN: Tensor) -> Tensor:
            return super().sparsity(pre_BN, z_BN) + z_BN.sum(dim=1).mean()

    with pytest.raises(AssertionError):
        assert_follows(Pulling(SPEC, weights()), restated)


def test_replicas_average_to_the_gradient_of_the_whole_batch() -> None:
    """The factor of the quadratic is of all replicas' L0; of each one's own it would differ."""
    spec, none = replace(SPEC, target_l0=3.0), torch.tensor([], dtype=torch.int64)

    def gradient(x: Tensor, mean_l0: Tensor | None) -> tuple[Tensor, Tensor]:
        class Replica(Unsharded):
            def mean_over_replicas(self, statistic: Tensor) -> Tensor:
                return statistic if mean_l0 is None else mean_l0

        model = JumpReLUAutoencoder(spec, weights(), Replica())
        _, losses = model.encode_with_losses(x, none, 99)
        losses.total.backward()
        assert model.log_threshold.grad is not None
        assert losses.sparsity is not None
        return model.log_threshold.grad, losses.sparsity

    x = batch() * torch.linspace(0.3, 2.0, len(batch()), dtype=torch.float64)[:, None]
    whole, mean_l0 = gradient(x, None)
    parts = [gradient(part, mean_l0)[0] for part in x.chunk(2)]
    torch.testing.assert_close(sum(parts) / 2, whole)
    alone = [gradient(part, None)[0] for part in x.chunk(2)]
    assert not torch.allclose(sum(alone) / 2, whole)


def test_thresholds_start_in_the_unit_of_the_data() -> None:
    """Data ten times as large start with ten times the threshold, and so wide a kernel."""
    large = replace(SPEC, mean_predictor_mse=100 * UNIT)
    starts = [
        float(JumpReLUAutoencoder(spec, random_weights()).log_threshold[0].exp().detach())
        for spec in (SPEC, large)
    ]
    assert starts == pytest.approx([0.001 * math.sqrt(D * UNIT), 0.01 * math.sqrt(D * UNIT)])
    assert large.width == pytest.approx(10 * SPEC.width)


def test_the_initial_scale_does_not_depend_on_the_threshold() -> None:
    models = [
        JumpReLUAutoencoder(replace(SPEC, initial_threshold=start), random_weights())
        for start in (1e-3, 10.0)
    ]
    for model in models:
        scale_encoder_(model, seed=0)
    torch.testing.assert_close(models[0].w_enc, models[1].w_enc)
    assert bool(models[0].w_enc.isfinite().all())
