"""What an encoder says of tokens: the k active latents of each, or a value for every latent.

A selection that keeps a fixed number per token never writes a [B, N] tensor; where sparsity is an
outcome (ReLU and its kin, or a selection over a whole batch) there is no width to keep to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scaling.kernels import Active


class Dense(NamedTuple):
    """A value for each latent held here; 0 = inactive."""

    values_BN: Tensor


Code = Active | Dense


def n_active(code: Code) -> int:
    """Active (token, latent) pairs: values above 0. (Reading it waits for the device.)"""
    return int((code[0] > 0).sum())


def fired(code: Code, n_local: int) -> Tensor:
    """Which of the latents held here were active in some token, [n_local] uint8: 1 or 0."""
    if isinstance(code, Dense):
        return (code.values_BN > 0).any(dim=0).to(torch.uint8)
    fired_N = torch.zeros(n_local, dtype=torch.uint8, device=code.values_BK.device)
    fired_N[code.indices_BK[code.values_BK > 0]] = 1
    return fired_N
