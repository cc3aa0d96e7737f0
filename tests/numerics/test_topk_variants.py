"""multi_topk, matryoshka and batch_topk against their published losses, restated in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.autoencoder.batch_topk import BatchTopKAutoencoder, BatchTopKSpec
from scaling.autoencoder.code import Dense, n_active
from scaling.autoencoder.matryoshka import MatryoshkaAutoencoder, MatryoshkaSpec
from scaling.autoencoder.multi_topk import MultiTopKAutoencoder, MultiTopKSpec
from scaling.autoencoder.topk import Fit
from scaling.kernels import Active, load_kernels
from tests.numerics.restated import (
    TOKENS,
    UNIT,
    D,
    N,
    Weights,
    assert_follows,
    batch,
    random_weights,
)

K, WIDE, PREFIXES = 3, 12, (4, 15, N)
COMMON: dict[str, Any] = {
    "d_model": D,
    "n_latents": N,
    "mean_predictor_mse": UNIT,
    "decoder_norm": False,
    "gradient_projection": False,
    "k": K,
    "k_aux": 4,
    "aux_coef": 0.25,
}
NONE, DEAD = torch.tensor([], dtype=torch.int64), torch.tensor([2, 5, 11, 17, 23, 38])
KERNELS = load_kernels("torch")


def multi(weights: Weights) -> MultiTopKAutoencoder:
    spec = MultiTopKSpec(**COMMON, wide_k=WIDE, wide_weight=0.125)
    return MultiTopKAutoencoder(spec, KERNELS, weights)


def nested(weights: Weights) -> MatryoshkaAutoencoder:
    return MatryoshkaAutoencoder(MatryoshkaSpec(**COMMON, prefixes=PREFIXES), KERNELS, weights)


def batched(weights: Weights) -> BatchTopKAutoencoder:
    spec = BatchTopKSpec(**COMMON, threshold_decay=0.75)
    return BatchTopKAutoencoder(spec, KERNELS, weights)


def pre_activations(x: Tensor, w: Weights) -> Tensor:
    return (x - w["b_pre"]) @ w["w_enc"].T + w["b_enc"]


def largest(pre: Tensor, k: int) -> Tensor:
    """relu(TopK_k(pre)) as a full matrix."""
    top = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values.clamp_min(0))


def of_residual(e: Tensor) -> Tensor:
    return (e**2).sum(1).mean() / (D * UNIT)


def aux_k(e: Tensor, x: Tensor, w: Weights, dead: Tensor) -> Tensor:
    if not len(dead):
        return torch.zeros(())
    e = e.detach()
    z = largest(pre_activations(x, w)[:, dead], COMMON["k_aux"])
    return COMMON["aux_coef"] * ((e - z @ w["w_dec"][dead]) ** 2).mean() / e.var(0, False).mean()


def multi_loss(x: Tensor, w: Weights, dead: Tensor = NONE) -> Tensor:
    pre = pre_activations(x, w)
    e, wide_e = (x - (largest(pre, k) @ w["w_dec"] + w["b_pre"]) for k in (K, WIDE))
    return of_residual(e) + of_residual(wide_e) / 8 + aux_k(e, x, w, dead)


def nested_loss(x: Tensor, w: Weights, dead: Tensor = NONE) -> Tensor:
    z = largest(pre_activations(x, w), K)
    es = [x - (z[:, :m] @ w["w_dec"][:m] + w["b_pre"]) for m in PREFIXES]
    return sum((of_residual(e) for e in es), torch.zeros(())) + aux_k(es[-1], x, w, dead)


def batched_loss(x: Tensor, w: Weights, dead: Tensor = NONE) -> Tensor:
    z = pre_activations(x, w).clamp_min(0)
    bound = z.detach().flatten().sort(descending=True).values[TOKENS * K - 1]
    e = x - ((z * (z >= bound)) @ w["w_dec"] + w["b_pre"])
    return of_residual(e) + aux_k(e, x, w, dead)


VARIANTS = {
    "multi": (multi, multi_loss),
    "nested": (nested, nested_loss),
    "batched": (batched, batched_loss),
}


@pytest.mark.parametrize("dead", [NONE, DEAD], ids=["none dead", "AuxK"])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_every_gradient_follow_the_equations(name: str, dead: Tensor) -> None:
    model, loss = VARIANTS[name]
    assert_follows(model(random_weights()), lambda x, w: loss(x, w, dead), dead=dead)


def test_a_prefix_that_reaches_too_far_would_be_noticed() -> None:
    spec = MatryoshkaSpec(**COMMON, prefixes=(8, 15, N))
    with pytest.raises(AssertionError):
        assert_follows(MatryoshkaAutoencoder(spec, KERNELS, random_weights()), nested_loss)


def test_a_wider_loss_of_other_weight_would_be_noticed() -> None:
    spec = MultiTopKSpec(**COMMON, wide_k=WIDE, wide_weight=0.25)
    with pytest.raises(AssertionError):
        assert_follows(MultiTopKAutoencoder(spec, KERNELS, random_weights()), multi_loss)


def test_a_selection_by_token_would_be_noticed() -> None:
    class ByToken(BatchTopKAutoencoder):
        def _fit(self, x_BD: Tensor, b_pre_D: Tensor) -> Fit:
            code = super().encode_at_start(x_BD)
            e = x_BD - self.decode(code)
            return Fit(code, e, of_residual(e), of_residual(e))

    model = ByToken(BatchTopKSpec(**COMMON, threshold_decay=0.75), KERNELS, random_weights())
    with pytest.raises(AssertionError):
        assert_follows(model, batched_loss)


@pytest.mark.parametrize("name", ["multi", "nested"])
def test_the_code_is_that_of_k(name: str) -> None:
    model, x = VARIANTS[name][0](random_weights()), batch()
    code, losses = model.encode_with_losses(x, NONE)
    assert isinstance(code, Active)
    assert code.indices_BK.shape == (TOKENS, K)
    found = model.encode(x)
    torch.testing.assert_close(code, found)
    e = x - model.decode(found).detach()
    assert float(losses.normalized_mse) == pytest.approx(float(of_residual(e)), rel=1e-12)


def test_a_batch_has_its_number_of_active_latents_and_tokens_differ() -> None:
    code, _ = batched(random_weights()).encode_with_losses(batch(), NONE)
    assert isinstance(code, Dense)
    assert n_active(code) == TOKENS * K
    assert len((code.values_BN > 0).sum(1).unique()) > 1


def test_the_threshold_is_a_running_mean_of_the_smallest_value_kept() -> None:
    model, smallest = batched(random_weights()), []
    for seed in (1, 2, 3):
        code, _ = model.encode_with_losses(batch(seed), NONE)
        assert isinstance(code, Dense)
        model.after_step(code)
        kept = code.values_BN.detach()
        smallest.append(float(kept[kept > 0].min()))
    expected = smallest[0]
    for value in smallest[1:]:
        expected = 0.75 * expected + 0.25 * value
    assert float(model.threshold) == pytest.approx(expected, rel=1e-12)
    found = model.encode(batch())
    assert isinstance(found, Dense)
    z = pre_activations(batch(), random_weights()).clamp_min(0)
    torch.testing.assert_close(found.values_BN.detach(), z * (z > expected))
    assert "threshold" in dict(model.with_weights(random_weights()).named_buffers())


def test_a_batch_without_positive_values_leaves_the_threshold() -> None:
    model = batched({**random_weights(), "b_enc": torch.full((N,), -1e3, dtype=torch.float64)})
    model.threshold.fill_(2.0)
    code, losses = model.encode_with_losses(batch(), NONE)
    model.after_step(code)
    assert n_active(code) == 0
    assert torch.isfinite(losses.total)
    assert float(model.threshold) == 2.0


@pytest.mark.parametrize("prefixes", [(), (0, N), (4, 4, N), (4, N - 1), (15, 4, N)])
def test_prefixes_that_do_not_ascend_to_all_are_refused(prefixes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="prefixes="):
        MatryoshkaSpec(**COMMON, prefixes=prefixes)
