"""The same activations and the same initial weights for every contender, from a seed."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.shapes import Shape

N_BATCHES = 4
DEAD_ROW_SCALE = 0.01
"""Encoder rows of the latents held dead are this much shorter: their pre-activations, of either
sign like those of real dead latents, never reach the top k. A large negative bias would silence
them too, but then AuxK had nothing but zeros to work on, which a step could skip."""


def make_batches(shape: Shape, seed: int = 0) -> list[Tensor]:
    """Activations [B, D]: mean, heavy-tailed low-rank structure and noise; variance about 0.5."""
    generator = torch.Generator().manual_seed(seed)
    d_model, rank = shape.d_model, shape.d_model // 4
    mean_D = torch.randn(d_model, generator=generator)
    scale_R = torch.arange(1, rank + 1).pow(-0.5)
    basis_RD = scale_R[:, None] * torch.randn(rank, d_model, generator=generator)

    def batch() -> Tensor:
        factors_BR = torch.randn(shape.batch_tokens, rank, generator=generator)
        size_B1 = torch.randn(shape.batch_tokens, 1, generator=generator).mul(0.5).exp()
        noise_BD = torch.randn(shape.batch_tokens, d_model, generator=generator)
        structure_BD = (size_B1 * factors_BR * factors_BR.abs()) @ basis_RD
        return mean_D + (structure_BD + noise_BD) / (1 + 3 * scale_R.norm())

    return [batch() for _ in range(N_BATCHES)]


def initial_weights(shape: Shape, batches: list[Tensor], seed: int = 0) -> dict[str, Tensor]:
    """w_enc [N, D], w_dec [N, D] of unit rows, b_enc [N], b_pre [D]; tied but for dead rows."""
    generator = torch.Generator().manual_seed(seed + 1)
    w_dec = torch.randn(shape.n_latents, shape.d_model, generator=generator)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    w_enc = w_dec.clone()
    w_enc[dead_ids(shape)] *= DEAD_ROW_SCALE
    return {
        "w_enc": w_enc,
        "w_dec": w_dec,
        "b_enc": torch.zeros(shape.n_latents),
        "b_pre": batches[0].mean(dim=0),
    }


def dead_ids(shape: Shape) -> Tensor:
    """Ids of the latents held dead, ascending, scattered over all latents; [A] int64."""
    scattered = torch.randperm(shape.n_latents, generator=torch.Generator().manual_seed(2))
    return scattered[: shape.n_dead].sort().values


def mean_predictor_mse(batches: list[Tensor]) -> float:
    """Mean over tokens and d of the squared distance to the mean."""
    x_BD = batches[0]
    return float((x_BD - x_BD.mean(dim=0)).square().mean())
