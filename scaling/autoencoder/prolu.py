"""ProLU (Taggart 2024, "ProLU: A Nonlinearity for Sparse Autoencoders"): a bias that only gates.

    m    = W_enc (x - b_pre)
    z    = m where m > 0 and m + b_enc > 0, else 0
    L    = |x - xhat|^2 + lambda * sum_i z_i

An active latent keeps its magnitude, which ReLU's bias lowers. The true derivative by the bias is 0
almost everywhere, so training uses one of two published synthetic gradients, both 0 where z is 0:

    relu    dz/dm = 1         dz/db = 1      as if z were relu(m + b)
    ste     dz/dm = 1 + m     dz/db = m      the gate H(m + b) differentiated as if it were a ReLU

The second depends on the scale of x. With neither does a lower bias lower what is active, so that
nothing pulls it back: at a rate that is good for ReLU nearly all latents may fall silent.

The penalty is the published plain L1 norm; weighted by decoder norms (`weighted_l1`) it is that of
`scaling.autoencoder.relu`, the same for unit rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scaling.autoencoder.dense import DenseAutoencoder, PenalizedSpec, weighted_l1

GRADIENTS = ("relu", "ste")


@dataclass(frozen=True, kw_only=True)
class ProLUSpec(PenalizedSpec):
    gradient: str = "relu"
    """Synthetic gradient: relu or ste."""
    weighted_l1: bool = False
    """Whether the penalty weighs each latent by its decoder row's norm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient={self.gradient} must be one of {GRADIENTS}")
        if not (self.weighted_l1 or self.decoder_norm):
            raise ValueError("a plain L1 penalty needs decoder_norm: free rows would evade it")


class ProLUAutoencoder(DenseAutoencoder[ProLUSpec]):
    """See the module's equations."""

    def activations(self, pre_BN: Tensor) -> Tensor:
        gate = _ProLUSTE if self.spec.gradient == "ste" else _ProLUReLU
        return gate.apply(pre_BN, self.b_enc)  # type: ignore[return-value]

    def sparsity(self, pre_BN: Tensor, z_BN: Tensor) -> Tensor:
        return weighted_l1(z_BN, self.w_dec) if self.spec.weighted_l1 else z_BN.sum(dim=1).mean()


class _ProLUReLU(torch.autograd.Function):
    """The gradient of relu(m + b), where z is not 0."""

    @staticmethod
    def forward(ctx: Any, m_BN: Tensor, b_N: Tensor) -> Tensor:
        z_BN = torch.where((m_BN > 0) & (m_BN + b_N > 0), m_BN, 0)
        ctx.save_for_backward(z_BN)
        return z_BN

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor]:
        (z_BN,) = ctx.saved_tensors
        gated_BN = grad_outputs[0] * (z_BN > 0)
        return gated_BN, gated_BN.sum(dim=0)


class _ProLUSTE(_ProLUReLU):
    """The gradient of m H(m + b) with H' = H, where z is not 0 (there z = m)."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor]:
        (z_BN,) = ctx.saved_tensors
        by_gate_BN = grad_outputs[0] * z_BN
        return torch.where(z_BN > 0, grad_outputs[0], 0) + by_gate_BN, by_gate_BN.sum(dim=0)
