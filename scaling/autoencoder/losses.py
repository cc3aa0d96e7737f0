"""The two losses, in the scale that epsilons, coefficients and clip values assume."""

from __future__ import annotations

import torch
from torch import Tensor


def reconstruction_loss(residual_BD: Tensor, mean_predictor_mse: float) -> Tensor:
    """Mean over tokens and d of the squared residual, over the calibration mean predictor's.

    The denominator is a constant computed once: a per-batch one would make the loss, and with it
    the gradient, depend on how the batch is split.
    """
    return residual_BD.square().mean() / mean_predictor_mse


def auxiliary_loss(target_BD: Tensor, recon_BD: Tensor) -> Tensor:
    """AuxK (Gao et al. 2024, appendix A.2): mean (e - ehat)^2 over the variance of e.

    The variance is about the batch mean of e. Where the loss is undefined (no variance, or not a
    finite number) it counts as 0, with zero gradient.
    """
    variance = _variance(target_BD)
    with torch.no_grad():
        error = (target_BD - recon_BD).square().mean()
        defined = (variance > 0) & torch.isfinite(error / variance)
    # Inputs are masked before the division: a NaN behind a mask would still reach the gradient.
    masked_BD = torch.where(defined, target_BD - recon_BD, torch.zeros_like(target_BD))
    return masked_BD.square().mean() / torch.where(defined, variance, torch.ones_like(variance))


def auxiliary_scale(target_BD: Tensor) -> Tensor:
    """What the sum of (e - ehat)^2 is multiplied by in `auxiliary_loss`: 1 / (B D variance), 0-d.

    0 where there is no variance, or not a finite one.
    """
    scale = 1 / (target_BD.numel() * _variance(target_BD))
    return torch.where(torch.isfinite(scale), scale, torch.zeros_like(scale))


def _variance(target_BD: Tensor) -> Tensor:
    """About the batch mean; 0 where it is but the rounding of equal vectors' mean."""
    variance = (target_BD - target_BD.mean(dim=0)).square().mean()
    rounding = (10 * torch.finfo(target_BD.dtype).eps) ** 2 * target_BD.square().mean()
    return torch.where(variance > rounding, variance, torch.zeros_like(variance))
