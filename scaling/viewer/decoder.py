"""What the decoder rows say of latents: neighbours, a map, and the logits they add.

    neighbours     by cosine of decoder rows
    map            the first two principal components of the decoder rows at unit length
    logit effect   of latent n at activation 1, at the token itself, through the final norm alone:

        e = (f / r) (U (gain * C d_n)),  less its mean over the vocabulary

    with U the output embedding, gain and C of the final norm (scaling/activations/readout.py), f
    what undoes the normalization of activations and r what the final norm divides by, both at
    their median over the text: f / r is stated. Later blocks, which read the latent too, are left
    out.

Shapes: N latents, D = d_model, V = vocabulary. Blocks of rows bound the memory: [rows, N or V].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from scaling.activations.readout import Readout
from scaling.evaluation.material import Material, TextBatch
from scaling.evaluation.metric import Told
from scaling.interchange.normalization import normalized

BLOCK = 512
N_LENGTH_BATCHES = 4
"""Batches that the median of r is taken over: each runs the upper part of the subject model."""


class Ranked(NamedTuple):
    """Of each latent the best of something, best first."""

    ids_NS: Tensor
    """int64."""
    values_NS: Tensor
    """float32."""


@dataclass(frozen=True)
class Scale:
    """What a logit effect was multiplied by."""

    factor: float
    """f."""
    length: float
    """r; 1 where the subject model has no final norm."""


def neighbours(w_dec_ND: Tensor, n: int, told: Told) -> Ranked:
    """The n other latents with the largest cosine, [N, min(n, N - 1)]."""
    unit_ND = normalize(w_dec_ND, dim=1)
    n = min(n, len(unit_ND) - 1)
    found = []
    for first, rows in _blocks(unit_ND, told):
        cosine_BN = rows @ unit_ND.T
        index_B = torch.arange(len(rows), device=rows.device)
        cosine_BN[index_B, first + index_B] = -2.0  # itself
        found.append(cosine_BN.topk(n, dim=1))
    return _ranked(found)


def plane(w_dec_ND: Tensor) -> tuple[Tensor, float]:
    """Coordinates [N, 2] in the first two principal components, and their share of variance."""
    unit_ND = normalize(w_dec_ND, dim=1)
    centered_ND = (unit_ND - unit_ND.mean(dim=0)).double()
    variances_D, axes_DD = torch.linalg.eigh(centered_ND.T @ centered_ND)
    axes_D2 = axes_DD[:, -2:].flip(1)
    # The sign of an axis is nobody's choice: let its largest channel point up.
    at_2 = axes_D2.abs().argmax(dim=0)
    axes_D2 = axes_D2 * axes_D2[at_2, torch.arange(2)].sign()
    share = float(variances_D[-2:].sum() / variances_D.sum().clamp_min(1e-30))
    return (centered_ND @ axes_D2).float(), share


def logit_effects(
    w_dec_ND: Tensor, readout: Readout, scale: Scale, n: int, told: Told
) -> tuple[Ranked, Ranked]:
    """The n tokens that each latent promotes most, and that it suppresses most."""
    unembedding_VD = readout.unembedding_VD.float()
    n = min(n, len(unembedding_VD))
    directions_ND = readout.directions(w_dec_ND) * (scale.factor / scale.length)
    most, least = [], []
    for _, rows in _blocks(directions_ND, told):
        effect_BV = rows @ unembedding_VD.T
        effect_BV -= effect_BV.mean(dim=1, keepdim=True)
        most.append(effect_BV.topk(n, dim=1))
        least.append(effect_BV.topk(n, dim=1, largest=False))
    return _ranked(most), _ranked(least)


def median_scale(material: Material, readout: Readout, normalization: str) -> Scale:
    """f over all of the text, r over its first N_LENGTH_BATCHES batches."""
    factors, lengths = [], []
    for number, batch in enumerate(material.batches()):
        factors.append(_factors(batch, normalization))
        if number < N_LENGTH_BATCHES:
            with readout.lengths() as seen, torch.no_grad():
                material.subject.logits(batch.ids_CT, batch.residual_CTD)
            lengths += [length_CT[batch.kept_CT] for length_CT in seen]
    length = float(torch.cat(lengths).median()) if lengths else 1.0
    return Scale(factor=float(torch.cat(factors).median()), length=length)


def _factors(batch: TextBatch, normalization: str) -> Tensor:
    x_RD = batch.residual_CTD[batch.kept_CT].float()
    _, scale = normalized(x_RD, normalization)
    return torch.ones(1) if scale is None else scale.factor_B1.flatten()


def _blocks(rows_ND: Tensor, told: Told) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(rows_ND), BLOCK):
        yield first, rows_ND[first : first + BLOCK]
        told(min(first + BLOCK, len(rows_ND)), len(rows_ND))


def _ranked(parts: list[torch.return_types.topk]) -> Ranked:
    return Ranked(
        torch.cat([part.indices for part in parts]).cpu(),
        torch.cat([part.values for part in parts]).cpu(),
    )
