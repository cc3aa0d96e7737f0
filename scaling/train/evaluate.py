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

from scaling.autoencoder.code import Code, fired, n_active
from scaling.train.engine import Reconstructor
from scaling.train.mesh import ALONE, Mesh


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
    mesh: Mesh = ALONE,
) -> Evaluation:
    """Score `model` on all `batches` ([B, D] each), which replicas take in turn.

    Raises:
        ValueError: there are none.
    """
    totals = _Totals(n_latents // mesh.latent.size)
    for turn, x_BD in enumerate(batches):
        if turn % mesh.dp.size == mesh.dp.index:
            totals.add(x_BD, *model.reconstruct(x_BD), mean_D)
    return totals.over(mesh, n_latents)


class _Totals:
    """Sums over the batches of this replica and the latents of this shard."""

    def __init__(self, n_local: int) -> None:
        self.squared_error = self.squared_distance = 0.0
        self.n_tokens = self.n_active = 0
        self.fired_N = torch.zeros(n_local, dtype=torch.uint8)

    def add(self, x_BD: Tensor, code: Code, recon_BD: Tensor, mean_D: Tensor) -> None:
        self.squared_error += _sum_of_squares(x_BD.to(recon_BD) - recon_BD)
        self.squared_distance += _sum_of_squares(x_BD - mean_D)
        self.n_active += n_active(code)
        self.fired_N |= fired(code, len(self.fired_N)).cpu()
        self.n_tokens += len(x_BD)

    def over(self, mesh: Mesh, n_latents: int) -> Evaluation:
        """The scores over all replicas and shards."""
        tokens = [self.squared_error, self.squared_distance, self.n_tokens]
        squared_error, squared_distance, n_tokens = mesh.sum_numbers(tokens, mesh.dp)
        if not n_tokens:
            raise ValueError("the held-out set is empty")
        n_active = mesh.sum_numbers(mesh.sum_numbers([self.n_active], mesh.dp), mesh.latent)[0]
        fired_N = mesh.dp.max_(self.fired_N.to(mesh.device), "latents that fired")
        n_fired = mesh.sum_numbers([int(fired_N.sum())], mesh.latent)[0]
        return Evaluation(
            normalized_mse=squared_error / squared_distance,
            l0=n_active / n_tokens,
            silent_fraction=1 - n_fired / n_latents,
            n_tokens=int(n_tokens),
        )


def _sum_of_squares(x_BD: Tensor) -> float:
    return float(x_BD.double().square().sum())
