"""Initial weights (Gao et al. 2024, appendix A.1), a pure function of seed and sample."""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.autoencoder.base import Autoencoder

ROWS_PER_DRAW = 4096
"""Latents drawn from one generator, so that a shard of rows can draw its own and no others."""


def unit_rows(
    n_rows: int, d_model: int, *, seed: int, stream: int, rows: range | None = None
) -> Tensor:
    """Random unit vectors, [n_rows, d_model] float32; `stream` tells independent uses apart.

    With `rows`, those of the n_rows alone, [len(rows), d_model].
    """
    wanted = rows or range(n_rows)
    drawn = []
    for start in range(wanted.start - wanted.start % ROWS_PER_DRAW, wanted.stop, ROWS_PER_DRAW):
        # As many as the whole matrix has there: a shorter draw could end in other numbers.
        n_block = min(ROWS_PER_DRAW, n_rows - start)
        block = torch.randn(
            n_block, d_model, generator=_generator(seed, stream, start // ROWS_PER_DRAW)
        )
        drawn.append(block[max(0, wanted.start - start) : wanted.stop - start])
    return torch.nn.functional.normalize(torch.cat(drawn), dim=1)


def initial_weights(
    n_latents: int,
    b_pre_D: Tensor,
    *,
    tied: bool,
    seed: int,
    dtype: torch.dtype,
    rows: range | None = None,
) -> dict[str, Tensor]:
    """Decoder rows random and unit, encoder equal to it (or independent), b_enc zero.

    With `rows`, of these latents alone.
    """

    def drawn(stream: int) -> Tensor:
        return unit_rows(n_latents, len(b_pre_D), seed=seed, stream=stream, rows=rows)

    w_dec_ND = drawn(0)
    w_enc_ND = w_dec_ND if tied else drawn(1)
    return {
        "w_enc": w_enc_ND.to(dtype, copy=True),
        "w_dec": w_dec_ND.to(dtype, copy=True),
        "b_enc": torch.zeros(len(w_dec_ND), dtype=dtype),
        "b_pre": b_pre_D.to(dtype, copy=True),
    }


@torch.no_grad()
def scale_encoder_(model: Autoencoder, *, seed: int) -> None:
    """Scale w_enc so that reconstructions have their inputs' norm (about b_pre).

    Measured, as in the released code, on 256 random unit vectors around b_pre. TopK and the ReLU
    commute with a positive factor, so one factor does it exactly; a threshold, which does not,
    counts as 0 here.
    """
    probe_BD = unit_rows(256, model.spec.d_model, seed=seed, stream=2).to(model.w_enc)
    at_start = model.homogeneous()
    recon_BD = at_start.decode(at_start.encode_at_start(probe_BD + model.b_pre)) - model.b_pre
    model.w_enc.mul_(probe_BD.norm() / recon_BD.norm())


@torch.no_grad()
def geometric_median(x_BD: Tensor, *, tolerance: float = 1e-5, max_steps: int = 100) -> Tensor:
    """The point with the least sum of distances to the rows, by Weiszfeld's iteration, [D].

    Stops when a step is shorter than `tolerance` times the mean distance.
    """
    # Distances to the moving center from two products, about the mean so that nothing cancels.
    mean_D = x_BD.mean(dim=0)
    points_BD = x_BD - mean_D
    squared_norm_B = points_BD.square().sum(dim=1)
    center_D = torch.zeros_like(mean_D)
    for _ in range(max_steps):
        squared_B = squared_norm_B - 2 * (points_BD @ center_D) + center_D.square().sum()
        distance_B = squared_B.clamp_min(0).sqrt()
        mean_distance = distance_B.mean()
        weight_B = 1 / distance_B.clamp_min(1e-6 * float(mean_distance) + 1e-30)
        moved_D = (weight_B @ points_BD) / weight_B.sum()
        step = (moved_D - center_D).norm()
        center_D = moved_D
        if step <= tolerance * mean_distance:
            break
    return mean_D + center_D


def _generator(seed: int, stream: int, block: int) -> torch.Generator:
    # Mixed by large odd constants, so that neighbouring seeds and blocks share no sequence.
    mixed = seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + block * 0x94D049BB133111EB
    return torch.Generator().manual_seed(mixed % 2**63)
