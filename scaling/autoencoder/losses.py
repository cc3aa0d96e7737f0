"""The two losses, in the scale that epsilons, coefficients and clip values assume."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def reconstruction_loss(residual_BD: Tensor, mean_predictor_mse: float) -> Tensor:
    """Mean over tokens and d of the squared residual, over the calibration mean predictor's.

    The denominator is a constant computed once: a per-batch one would make the loss, and with it
    the gradient, depend on how the batch is split.
    """
    return residual_BD.square().mean() / mean_predictor_mse


def auxiliary_loss(
    target_BD: Tensor,
    recon_BD: Tensor,
    mean_over_replicas: Callable[[Tensor], Tensor] = lambda statistic: statistic,
) -> Tensor:
    """AuxK (Gao et al. 2024, appendix A.2): mean (e - ehat)^2 over the variance of e.

    The variance is about the mean of e over the global batch, of which this replica may hold a
    part. Where the loss is undefined (no variance, or not a finite number) it counts as 0, with
    zero gradient, on all replicas alike.
    """
    with torch.no_grad():
        mean_D = mean_over_replicas(target_BD.mean(dim=0))
        differences = (target_BD - mean_D, target_BD, target_BD - recon_BD)
        squares = torch.stack([difference.square().mean() for difference in differences])
        statistics = mean_over_replicas(squares)
        variance = _unless_rounding(statistics[0], statistics[1])
        defined = (variance > 0) & torch.isfinite(statistics[2] / variance)
    # Inputs are masked before the division: a NaN behind a mask would still reach the gradient.
    masked_BD = torch.where(defined, target_BD - recon_BD, torch.zeros_like(target_BD))
    return masked_BD.square().mean() / torch.where(defined, variance, torch.ones_like(variance))


def auxiliary_scale(target_BD: Tensor) -> Tensor:
    """What the sum of (e - ehat)^2 is multiplied by in `auxiliary_loss`: 1 / (B D variance), 0-d.

    0 where there is no variance, or not a finite one.
    """
    variance = (target_BD - target_BD.mean(dim=0)).square().mean()
    scale = 1 / (target_BD.numel() * _unless_rounding(variance, target_BD.square().mean()))
    return torch.where(torch.isfinite(scale), scale, torch.zeros_like(scale))


def _unless_rounding(variance: Tensor, mean_square: Tensor) -> Tensor:
    """The variance; 0 where it is but the rounding of equal vectors' mean."""
    rounding = (10 * torch.finfo(variance.dtype).eps) ** 2 * mean_square
    return torch.where(variance > rounding, variance, torch.zeros_like(variance))
