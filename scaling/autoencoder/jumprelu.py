"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435, section 3): a threshold for each latent.

    pre  = W_enc (x - b_pre) + b_enc,    theta = exp(log_threshold)
    z    = pre where pre > theta, else 0
    L    = |x - xhat|^2 + lambda * L0                       L0: active latents a token
    or     |x - xhat|^2 + lambda * (L0 / target_l0 - 1)^2   L0: their mean over the batch

By pre, z has its true derivative and L0 none. By theta the true ones are 0 almost everywhere, and
the paper's estimates of the expected loss's derivative take their place, with a rectangle kernel
K(u) = 1 where |u| < 1/2, else 0:

    dz/dtheta = -(theta / width) K((pre - theta) / width)
    dL0/dtheta = -(1 / width) K((pre - theta) / width)

Unit of `bandwidth` (width = bandwidth * unit) and `initial_threshold`: the root mean squared
distance of x from its mean. The paper's 0.001 is for vectors of unit mean squared norm; distances
from the mean make it the same for vectors that b_pre has centered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from scaling.autoencoder.dense import DenseAutoencoder, PenalizedSpec
from scaling.autoencoder.shard import LatentShard


@dataclass(frozen=True, kw_only=True)
class JumpReLUSpec(PenalizedSpec):
    bandwidth: float = 0.001
    """Width of the kernel; in units of x's root mean squared distance from its mean."""
    initial_threshold: float = 0.001
    """Theta at the start, in the same unit."""
    target_l0: float | None = None
    """Active latents a token that the quadratic penalty asks for; None = the penalty is L0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bandwidth", "initial_threshold", "target_l0"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive")

    @property
    def length(self) -> float:
        """Root mean squared distance of x from its mean."""
        return math.sqrt(self.unit)

    @property
    def width(self) -> float:
        """Of the kernel, in the unit of pre-activations."""
        return self.bandwidth * self.length


class JumpReLUAutoencoder(DenseAutoencoder[JumpReLUSpec]):
    """See the module's equations."""

    MORE_PER_LATENT: ClassVar[dict[str, float]] = {"log_threshold": -math.inf}
    log_threshold: Tensor

    def __init__(
        self, spec: JumpReLUSpec, weights: dict[str, Tensor], shard: LatentShard | None = None
    ) -> None:
        start = math.log(spec.initial_threshold * spec.length)
        start_N = torch.full_like(weights["b_enc"], start)
        super().__init__(spec, {"log_threshold": start_N, **weights}, shard)

    def homogeneous(self) -> Self:
        zero = torch.full_like(self.log_threshold, -math.inf).detach()
        return self.with_weights({**dict(self.named_parameters()), "log_threshold": zero})

    def activations(self, pre_BN: Tensor) -> Tensor:
        threshold_N = self.log_threshold.exp()
        return _Jump.apply(pre_BN + self.b_enc, threshold_N, self.spec.width)  # type: ignore[return-value]

    def sparsity(self, pre_BN: Tensor, z_BN: Tensor) -> Tensor:
        """L0, whose only derivative is by theta: the kernel's count of each latent."""
        threshold_N, n_tokens = self.log_threshold.exp(), len(z_BN)
        near_BN = _near(pre_BN + self.b_enc, threshold_N, self.spec.width)
        slope_N = near_BN.sum(dim=0).to(z_BN) / (-self.spec.width * n_tokens)
        l0 = (z_BN > 0).sum().to(z_BN) / n_tokens
        return l0 + slope_N @ (threshold_N - threshold_N.detach())

    def penalized(self, sparsity: Tensor) -> Tensor:
        """Of L0, of all shards: itself, or its squared distance from the target."""
        target = self.spec.target_l0
        if target is None:
            return sparsity
        # Replicas average their gradients: each has the factor of the global batch's L0, and the
        # derivative of its own part's.
        excess = self.shard.mean_over_replicas(sparsity.detach()) / target - 1
        own = 2 * excess / target * (sparsity - sparsity.detach())
        return excess.square() + own


def _near(pre_BN: Tensor, threshold_N: Tensor, width: float) -> Tensor:
    """K((pre - theta) / width), [B, N] bool."""
    return (pre_BN.detach() - threshold_N.detach()).abs() < width / 2


class _Jump(torch.autograd.Function):
    """z of pre and theta."""

    @staticmethod
    def forward(ctx: Any, pre_BN: Tensor, threshold_N: Tensor, width: float) -> Tensor:
        z_BN = torch.where(pre_BN > threshold_N, pre_BN, 0)
        ctx.save_for_backward(z_BN, _near(pre_BN, threshold_N, width), threshold_N)
        ctx.width = width
        return z_BN

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor, None]:
        z_BN, near_BN, threshold_N = ctx.saved_tensors
        by_threshold_N = (grad_outputs[0] * near_BN).sum(dim=0) * (-threshold_N / ctx.width)
        return grad_outputs[0] * (z_BN > 0), by_threshold_N, None
