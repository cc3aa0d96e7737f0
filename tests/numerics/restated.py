"""Small float64 models of every architecture, and the comparison with a restated loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scaling.autoencoder.base import Autoencoder

D, N, TOKENS = 12, 40, 24
UNIT = 0.7
"""The mean predictor's mse."""
Weights = dict[str, Tensor]


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_weights() -> Weights:
    """Of no special norm, with biases and a center that matter."""
    return {
        "w_enc": normal(N, D, seed=1),
        "w_dec": 0.7 * normal(N, D, seed=2),
        "b_enc": 0.5 * normal(N, seed=3),
        "b_pre": 0.3 * normal(D, seed=4),
    }


def batch(seed: int = 9) -> Tensor:
    return normal(TOKENS, D, seed=seed)


def leaves_of(model: Autoencoder) -> Weights:
    return {
        name: param.detach().clone().requires_grad_() for name, param in model.named_parameters()
    }


def assert_follows(
    model: Autoencoder,
    restated: Callable[[Tensor, Weights], Tensor],
    *,
    dead: Tensor | None = None,
    step: int = 10**6,
    rtol: float = 1e-10,
) -> None:
    """The total and its gradient by every parameter are those of the restated loss."""
    x = batch()
    none = torch.tensor([], dtype=torch.int64)
    _, losses = model.encode_with_losses(x, none if dead is None else dead, step)
    losses.total.backward()
    leaves = leaves_of(model)
    expected = restated(x, leaves)
    expected.backward()
    torch.testing.assert_close(losses.total.detach(), expected.detach(), rtol=rtol, atol=0)
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        wanted = leaves[name].grad
        assert wanted is not None, name
        assert float(wanted.abs().max()) > 0, name
        torch.testing.assert_close(
            param.grad, wanted, rtol=rtol, atol=1e-13, msg=lambda said, name=name: f"{name}: {said}"
        )
