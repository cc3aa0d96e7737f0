"""The counted FLOPs are those a framework counts when it runs the dense equations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scaling import budget


def test_dense_convention_is_six_matmuls() -> None:
    n, d, tokens = 64, 16, 32
    x, w_enc, w_dec = (torch.randn(rows, d, requires_grad=True) for rows in (tokens, n, n))
    with FlopCounterMode(display=False) as counter:
        (torch.relu(x @ w_enc.T) @ w_dec).square().sum().backward()
    assert counter.get_total_flops() == tokens * budget.flops_per_token_dense(n, d)


def test_sparse_convention_tends_to_a_sixth() -> None:
    n, d, k = 2**24, 768, 32
    ratio = budget.flops_per_token_dense(n, d) / budget.flops_per_token_sparse(n, d, k)
    assert ratio == pytest.approx(6, rel=1e-4)


@pytest.mark.parametrize(
    ("d_model", "k_aux"), [(768, 512), (576, 256), (64, 32), (4096, 2048), (1, 1)]
)
def test_k_aux_is_the_power_of_two_nearest_to_half_of_d(d_model: int, k_aux: int) -> None:
    """512 for GPT-2 small, as published."""
    assert budget.power_of_two_near(d_model / 2) == k_aux


def test_parameters() -> None:
    assert budget.n_params(10, 4) == 10 * 4 * 2 + 10 + 4


def test_whole_steps_only() -> None:
    assert budget.n_steps(1000, 256) == 3
