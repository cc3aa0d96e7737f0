"""The numbers that may be fitted on: one definition each, float32 sums in float64, global.

normalized_mse = sum |x - xhat|^2 / sum |x - calibration mean|^2, both sums over the whole fixed
held-out set: 1 for the mean predictor, 0 for a perfect one, whatever the batch. It is never a
mean of per-batch ratios.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from scaling.train.engine import Reconstructor


@dataclass(frozen=True)
class Evaluation:
    """Scores on the held-out set."""

    normalized_mse: float
    l0: float
    """Mean number of non-zero latents per token."""
    silent_fraction: float
    """Share of latents that fired on no held-out token."""
    n_tokens: int


@torch.no_grad()
def evaluate(
    model: Reconstructor,
    batches: Iterable[Tensor],
    mean_D: Tensor,
    n_latents: int,
) -> Evaluation:
    """Score `model` on all `batches` ([B, D] each). ValueError when there are none."""
    squared_error, squared_distance, n_active, n_tokens = 0.0, 0.0, 0, 0
    fired_N = torch.zeros(n_latents, dtype=torch.bool)
    for x_BD in batches:
        active, recon_BD = model.reconstruct(x_BD)
        squared_error += _sum_of_squares(x_BD.to(recon_BD) - recon_BD)
        squared_distance += _sum_of_squares(x_BD - mean_D)
        on_BK = active.values_BK > 0
        n_active += int(on_BK.sum())
        fired_N[active.indices_BK[on_BK].cpu()] = True
        n_tokens += len(x_BD)
    if not n_tokens:
        raise ValueError("the held-out set is empty")
    return Evaluation(
        normalized_mse=squared_error / squared_distance,
        l0=n_active / n_tokens,
        silent_fraction=1 - float(fired_N.double().mean()),
        n_tokens=n_tokens,
    )


def _sum_of_squares(x_BD: Tensor) -> float:
    return float(x_BD.double().square().sum())
