"""The held-out metric: 1 for the mean predictor, 0 for a perfect one, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.kernels import Active
from scaling.train.evaluate import evaluate


class Fixed:
    """Reconstructs by a given rule; one latent in three is on."""

    def __init__(self, rule: object) -> None:
        self.rule = rule

    def reconstruct(self, x_BD: Tensor) -> tuple[Active, Tensor]:
        values = torch.tensor([[1.0, 0.0, 0.5]]).expand(len(x_BD), 3)
        return Active(values, torch.tensor([[0, 1, 4]]).expand(len(x_BD), 3)), self.rule(x_BD)  # type: ignore[operator]


@pytest.fixture
def held_out() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    # Uneven norms and a large mean: what tells global sums from a mean of per-batch ratios.
    return torch.randn(1000, 6, generator=generator) * torch.logspace(-2, 1, 1000)[:, None] + 3


def test_mean_predictor_scores_one_and_perfect_zero(held_out: Tensor) -> None:
    mean = held_out.mean(dim=0)
    predicts_mean = Fixed(lambda x: mean.expand_as(x))
    assert evaluate(predicts_mean, [held_out], mean, 5).normalized_mse == pytest.approx(1, abs=1e-7)
    assert evaluate(Fixed(lambda x: x), [held_out], mean, 5).normalized_mse == 0.0


def test_independent_of_the_evaluation_batch(held_out: Tensor) -> None:
    mean = held_out.mean(dim=0)
    halves = Fixed(lambda x: x / 2)
    scores = [
        evaluate(halves, held_out.split(size), mean, 5).normalized_mse for size in (64, 999, 4096)
    ]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-9)
    ratios = [float((x / 2).square().sum() / (x - mean).square().sum()) for x in held_out.split(64)]
    assert abs(sum(ratios) / len(ratios) - scores[0]) > 0.1  # the mean of ratios is another number


def test_l0_and_silent_latents(held_out: Tensor) -> None:
    score = evaluate(Fixed(lambda x: x), held_out.split(100), held_out.mean(dim=0), 5)
    assert score.l0 == 2.0
    assert score.silent_fraction == pytest.approx(3 / 5)
    assert score.n_tokens == 1000


def test_nothing_held_out_is_an_error(held_out: Tensor) -> None:
    with pytest.raises(ValueError, match="empty"):
        evaluate(Fixed(lambda x: x), [], held_out.mean(dim=0), 5)
