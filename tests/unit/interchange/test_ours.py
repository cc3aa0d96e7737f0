"""What training calls an architecture is one of four kinds: by its own equations, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scaling.autoencoder.registry import ARCHITECTURES
from scaling.interchange import ours
from tests.portables import K, N, activations, by_equations, random_portable, worst

Latents = Callable[[Tensor, dict[str, Tensor]], Tensor]
"""z of m = w_enc (x - b_pre), [B, N], and the weights by the names of training."""


def topk(m: Tensor, w: dict[str, Tensor]) -> Tensor:
    pre = m + w["b_enc"]
    return torch.where(pre >= pre.topk(K).values[:, -1:], pre, 0).clamp_min(0)


def gated(m: Tensor, w: dict[str, Tensor]) -> Tensor:
    magnitude = (w["r_mag"].exp() * m + w["b_mag"]).clamp_min(0)
    return torch.where(m + w["b_enc"] > 0, magnitude, 0)


def jumprelu(m: Tensor, w: dict[str, Tensor]) -> Tensor:
    pre = m + w["b_enc"]
    return torch.where(pre > w["log_threshold"].exp(), pre, 0)


def batch_topk(m: Tensor, w: dict[str, Tensor]) -> Tensor:
    pre = m + w["b_enc"]
    return torch.where(pre > w["threshold"], pre, 0).clamp_min(0)


EQUATIONS: dict[str, Latents] = {
    "topk": topk,
    "multi_topk": topk,
    "matryoshka": topk,
    "relu": lambda m, w: (m + w["b_enc"]).clamp_min(0),
    "prolu": lambda m, w: torch.where((m > 0) & (m + w["b_enc"] > 0), m, 0),
    "gated": gated,
    "jumprelu": jumprelu,
    "batch_topk": batch_topk,
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_portable_form_has_the_same_latents(name: str) -> None:
    torch.manual_seed(0)
    more = {
        "r_mag": torch.randn(N) * 0.2,
        "b_mag": torch.randn(N) * 0.2,
        "log_threshold": torch.randn(N) * 0.2 - 1,
        "threshold": torch.tensor(0.6),
    }
    weights = {**random_portable().weights, **more}
    made = ours.portable(name, weights, k=K, normalization="none", facts={})
    x_BD = activations()
    doubled = {n: tensor.double() for n, tensor in weights.items()}
    m_BN = (x_BD.double() - doubled["b_pre"]) @ doubled["w_enc"].T
    z_BN = EQUATIONS[name](m_BN, doubled)
    assert worst(by_equations(made, x_BD)[0], z_BN) < 1e-6
    assert 0 < int((z_BN > 0).sum()) < z_BN.numel()


def test_every_architecture_that_is_trained_is_known() -> None:
    assert set(ours.known()) == set(ARCHITECTURES)
    assert set(ours.known()) <= set(EQUATIONS)
    assert set(ours.known()) <= set(ours.ACTIVATION)
