"""Resampling: dead latents drawn anew from inputs that are reconstructed badly.

After Bricken et al. (2023), "Towards Monosemanticity", appendix on neuron resampling. After every
`every_steps` updates, up to `until_step`, and for the latents that are then dead:

1. |x - xhat|^2 of each token of the batch just trained on, under the updated weights;
2. an input for each dead latent, drawn with probability ~ the square of that, none of them twice
   (twins would stay twins); where there are fewer inputs than dead latents, the others stay dead;
3. decoder row = u, the unit vector along x - b_pre, which is what encoder and decoder see; encoder
   row = 0.2 times the mean norm of the living ones' rows, times u; bias 0;
4. Adam's moments of what was changed are 0 (its count of steps goes on), the weight average is
   what was drawn, and the latent counts as having just fired.

A pure function of seed, step, weights and batch, whatever the mesh: replicas put their batches
together, and of one order of dead latents each shard takes its own. The paper takes its inputs from
819,200 tokens; here it is a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from scaling.autoencoder.base import Autoencoder
from scaling.train.mesh import Mesh

ENCODER_SHARE = 0.2
"""Norm of a new encoder row, of the mean norm of the living ones'."""


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """When, and from which seed."""

    every_steps: int
    until_step: int
    seed: int

    def is_due(self, n_updates: int) -> bool:
        """After `n_updates` updates."""
        return n_updates % self.every_steps == 0 and n_updates <= self.until_step

    def generator(self, n_updates: int) -> torch.Generator:
        # Odd constants, so that neighbouring seeds and steps share no sequence.
        mixed = self.seed * 0xD1342543DE82EF95 + n_updates * 0xAF251AF3B0F025B5 + 1
        return torch.Generator().manual_seed(mixed % 2**63)


@torch.no_grad()
def resample_(
    model: Autoencoder, dead: Tensor, batch_BD: Tensor, mesh: Mesh, generator: torch.Generator
) -> Tensor:
    """Draw the dead latents' rows anew, in place; the local ids of those that were, int64.

    Of an architecture without parameters of its own (`scaling.sweep.dead_latents` refuses others).
    Collective. `dead` are the local ids of the dead latents, `batch_BD` this replica's tokens. The
    caller resets what else belongs to these latents.
    """
    n_dead = model.shard.gather_counts(len(dead))
    if not sum(n_dead):
        return dead
    drawn = _drawn(_weights(model, batch_BD, mesh), sum(n_dead), generator)
    first = sum(n_dead[: mesh.latent.index])
    drawn = drawn[first : first + len(dead)]
    ids = dead[: len(drawn)]
    unit_AD = normalize(_inputs(drawn, batch_BD - model.b_pre, mesh), dim=1)
    model.w_enc[ids] = ENCODER_SHARE * _living_norm(model, dead, mesh) * unit_AD
    model.w_dec[ids] = unit_AD
    model.b_enc[ids] = 0
    return ids


def zero_rows_(tensors: Iterable[Tensor], ids: Tensor) -> None:
    """Zero those rows of each tensor."""
    for tensor in tensors:
        tensor[ids] = 0


def _weights(model: Autoencoder, batch_BD: Tensor, mesh: Mesh) -> Tensor:
    """Of each token of the whole batch, in its order: the square of its loss, float64."""
    residual_BD = batch_BD - model.decode(model.encode(batch_BD))
    weight_B = residual_BD.double().square().sum(dim=1).square()
    usable_B = weight_B.isfinite() & (batch_BD != model.b_pre).any(dim=1)
    weight_B = torch.where(usable_B, weight_B, torch.zeros_like(weight_B))
    return mesh.dp.gather(weight_B, "losses of tokens").flatten()


def _drawn(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Up to n different indices of positive weights, each next one with probability ~ weight among
    those left, [<= n] int64.

    Exponential times with these rates: the order of the first n is that of such draws.
    """
    weights = weights.cpu()
    uniform = torch.rand(len(weights), generator=generator, dtype=torch.float64)
    times = -torch.log1p(-uniform) / weights
    n_usable = int((weights > 0).sum())
    return times.argsort(stable=True)[: min(n, n_usable)]


def _inputs(drawn: Tensor, centered_BD: Tensor, mesh: Mesh) -> Tensor:
    """The drawn tokens of the whole batch, less b_pre, on every replica, [A, D]."""
    local = drawn - mesh.dp.index * len(centered_BD)
    here = (local >= 0) & (local < len(centered_BD))
    rows_AD = centered_BD.new_zeros(len(drawn), centered_BD.shape[1])
    if not len(drawn):
        return rows_AD
    rows_AD[here.to(rows_AD.device)] = centered_BD[local[here].to(rows_AD.device)]
    return mesh.dp.sum_(rows_AD, "resampled inputs")


def _living_norm(model: Autoencoder, dead: Tensor, mesh: Mesh) -> float:
    """Mean norm of the encoder rows of all shards' living latents; of all, where none lives."""
    norm_N = torch.linalg.vector_norm(model.w_enc.double(), dim=1)
    living_N = torch.ones_like(norm_N)
    living_N[dead] = 0
    sums = [living_N @ norm_N, living_N.sum(), norm_N.sum(), torch.tensor(len(norm_N))]
    living, n_living, every, n = mesh.sum_numbers([float(number) for number in sums], mesh.latent)
    return living / n_living if n_living else every / n
