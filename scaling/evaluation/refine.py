"""How far an encoder's magnitudes are from the best ones for the latents it chose.

The active set and the decoder stay; the magnitudes z >= 0 that make |x - W^T z|^2 least take the
place of the encoder's (Gao et al. 2024, section 5.1: an L1 penalty shrinks them, TopK has none).

    refinement_shift   sum of (best - encoder's) over the sum of the encoder's, over active latents
    refinement_gain    normalized MSE of the best over the encoder's; 1 = nothing to gain

Coordinate descent: each magnitude in turn goes to its own best, which never raises the error.

Shapes: B vectors, D = d_model, N latents, K active latents of the fullest vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from scaling.evaluation.material import Material
from scaling.evaluation.metric import Measured, Subject, Told
from scaling.evaluation.sampled import (
    Sample,
    check_counts,
    over_vectors,
    sample,
    some_vectors,
    squared_errors,
)

MAX_SWEEPS = 300
CLOSE_ENOUGH = 1e-5
"""Of a sweep's largest change, relative to the largest magnitude of the chunk."""
CHUNK = 256
_WHY = {
    "refinement_shift": "no latent is active",
    "refinement_gain": "the reconstruction is perfect",
}
"""Such a column is undefined."""


@dataclass
class Options:
    vectors: int = 2048
    """Held-out vectors, drawn at random (seed 0) from those of the contexts."""


class Refinement:
    """See the module."""

    name = "refinement"
    version = 1
    packages = ()
    on_text = False

    def settings(self, options: Options) -> Mapping[str, object]:
        check_counts(self.name, options)
        return asdict(options)

    def measure(self, run: Subject, material: Material, options: Options, told: Told) -> Measured:
        decoder_ND = run.autoencoder.w_dec
        found = sample(run.autoencoder, some_vectors(material, options.vectors))
        values_RK = refined_sample(found, decoder_ND, told)
        before_R = found.errors(decoder_ND)
        after_R = squared_errors(found.target_RD, decoder_ND, found.chosen.ids_RK, values_RK)
        sum_R = found.chosen.values_RK.double().sum(dim=1)
        shift_R = (values_RK - found.chosen.values_RK).double().sum(dim=1)
        estimates = {
            "refinement_shift": over_vectors(shift_R, sum_R),
            "refinement_gain": over_vectors(after_R, before_R),
        }
        notes = {
            "normalized_mse": float(before_R.sum()) / found.total,
            "normalized_mse_refined": float(after_R.sum()) / found.total,
            "set_to_zero": _share_of_zeros(values_RK, found.chosen.counts_R),
            "n_vectors": len(found.target_RD),
            "undefined": {name: _WHY[name] for name, one in estimates.items() if one.value is None},
        }
        return Measured.of(estimates, notes, units=material.units)


def refined_sample(found: Sample, decoder_ND: Tensor, told: Told | None = None) -> Tensor:
    """The best magnitudes of the sample's active sets, [R, K]."""
    target_RD, (ids_RK, values_RK, counts_R) = found.target_RD, found.chosen
    best_RK = torch.zeros_like(values_RK)
    order = counts_R.argsort(stable=True)  # chunks of like counts: little padding
    for number, rows in enumerate(order.split(CHUNK)):
        k = max(1, int(counts_R[rows].max()))
        best_RK[rows, :k] = refined(
            target_RD[rows], decoder_ND, ids_RK[rows, :k], values_RK[rows, :k], counts_R[rows]
        )
        if told is not None:
            told(min((number + 1) * CHUNK, len(order)), len(order))
    return best_RK


@torch.no_grad()
def refined(
    x_BD: Tensor, decoder_ND: Tensor, ids_BK: Tensor, start_BK: Tensor, counts_B: Tensor
) -> Tensor:
    """The z >= 0 that make |x - sum_j z_j decoder[ids_j]|^2 least, [B, K]; places beyond a vector's
    count stay 0.

    x: float [B, D]; ids: int64 [B, K]; start: float [B, K], non-negative; counts: int64 [B].
    """
    places_K = torch.arange(ids_BK.shape[1], device=x_BD.device)
    rows_BKD = decoder_ND[ids_BK] * (places_K < counts_B[:, None]).unsqueeze(2)
    gram_BKK = torch.bmm(rows_BKD, rows_BKD.transpose(1, 2))
    toward_BK = torch.bmm(rows_BKD, x_BD.unsqueeze(2)).squeeze(2)
    norm_BK = gram_BKK.diagonal(dim1=1, dim2=2).clone()
    z_BK = torch.where(norm_BK > 0, start_BK, 0)
    norm_BK[norm_BK == 0] = 1
    for _ in range(MAX_SWEEPS):
        before_BK = z_BK.clone()
        for j in range(z_BK.shape[1]):
            slope_B = toward_BK[:, j] - (gram_BKK[:, j] * z_BK).sum(dim=1)
            z_BK[:, j] = (z_BK[:, j] + slope_B / norm_BK[:, j]).clamp_min_(0)
        if float((z_BK - before_BK).abs().max()) <= CLOSE_ENOUGH * float(z_BK.max()):
            break
    return z_BK


def _share_of_zeros(values_RK: Tensor, counts_R: Tensor) -> float:
    """Of active latents, those that are better off."""
    n_active = int(counts_R.sum())
    return 1 - int((values_RK > 0).sum()) / n_active if n_active else 0.0
