"""How an autoencoder does with another number of active latents than it was trained for.

Two ways to choose them from the same magnitudes (Gao et al. 2024, section 5.2):

    topk       the k' largest magnitudes of each vector
    threshold  all magnitudes above one threshold, the same for all vectors, that leaves k' on
               average (JumpReLU at inference)

Of kind topk the magnitudes are relu(W_enc (x - b_pre) + b_enc), all n of them; of other kinds what
the encoder leaves active, so that there k' ends where nothing is left to add. k is the
autoencoder's own, or its mean number of active latents, rounded.

    progressive_half       normalized MSE at k' = k/2 (rounded down, undefined for k = 1) over that
                           at k; the next two likewise
    progressive_double     k' = 2 k     above 1: more latents than trained for do harm
    progressive_quadruple  k' = 4 k
    progressive_threshold  of the threshold that leaves k on average, over topk at k

The whole curve is in the notes. At k' = k, kind topk, it is the run's own reconstruction.

Shapes: B vectors, D = d_model, N latents, W magnitudes kept of a vector, L levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scaling.autoencoder.code import Dense
from scaling.evaluation.estimate import Estimate
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Measured, Subject, Told
from scaling.evaluation.sampled import check_counts, over_vectors, some_vectors
from scaling.interchange.model import LoadedAutoencoder
from scaling.interchange.normalization import normalized

CHUNK = 256
LARGEST = 4
"""Times k: the largest k' looked at."""
COLUMNS = tuple(f"progressive_{name}" for name in ("half", "double", "quadruple", "threshold"))
HEADROOM = 4
"""Times the largest k': magnitudes of a vector that a threshold is looked for among."""


@dataclass
class Options:
    vectors: int = 2048
    """Held-out vectors, drawn at random (seed 0) from those of the contexts."""


class Progressive:
    """See the module."""

    name = "progressive"
    version = 1
    packages = ()
    on_text = False

    def settings(self, options: Options) -> Mapping[str, object]:
        check_counts(self.name, options)
        return asdict(options)

    def measure(self, run: Subject, material: Material, options: Options, told: Told) -> Measured:
        x_RD = some_vectors(material, options.vectors).to(run.autoencoder.b_pre)
        k = own_k(run.autoencoder, x_RD)
        if k is None:
            nothing = dict.fromkeys(COLUMNS, "no latent is active")
            return Measured(dict.fromkeys(COLUMNS, None), {"undefined": nothing})
        found = recovered(
            run.autoencoder, x_RD, levels_of(k, run.autoencoder.facts.n_latents), told
        )
        ratios = _ratios(found, k)
        beyond = [column for column, ratio in ratios.items() if ratio.value is None]
        notes = {
            "k": k,
            "curve": found.points,
            "n_vectors": len(x_RD),
            "undefined": dict.fromkeys(
                beyond, "there is no such number of latents, or no error at k"
            ),
        }
        return Measured.of(ratios, notes, units=material.units)


class Recovered(NamedTuple):
    """What is left with the k' largest magnitudes (first) and those above a threshold (second)."""

    levels: list[int]
    """k', ascending."""
    thresholds_L: Tensor
    errors_2LR: Tensor
    """Squared, float64."""
    active_2L: Tensor
    """Latents active on average, float64."""
    total: float
    """Sum of squared distances of the vectors from their mean."""

    @property
    def points(self) -> list[dict[str, float]]:
        """Of each level normalized MSE, the latents that really are active, and the threshold."""
        mse_2L = (self.errors_2LR.sum(dim=2) / self.total).tolist()
        l0_2L = self.active_2L.tolist()
        return [
            {
                "k": level,
                "normalized_mse": mse_2L[0][place],
                "l0": l0_2L[0][place],
                "threshold": float(self.thresholds_L[place]),
                "threshold_normalized_mse": mse_2L[1][place],
                "threshold_l0": l0_2L[1][place],
            }
            for place, level in enumerate(self.levels)
        ]


def levels_of(k: int, n_latents: int) -> list[int]:
    """Powers of two up to 4 k, and k/2, k, 2 k, 4 k themselves; none above n."""
    powers = {2**power for power in range((LARGEST * k).bit_length())}
    wanted = powers | {k // 2, k, 2 * k, LARGEST * k}
    return sorted(level for level in wanted if 1 <= level <= min(LARGEST * k, n_latents))


def own_k(autoencoder: LoadedAutoencoder, x_RD: Tensor) -> int | None:
    """Of the autoencoder, or its mean number of active latents; None where none is active."""
    if autoencoder.facts.k is not None:
        return autoencoder.facts.k
    n_active = sum(int((magnitudes(autoencoder, x_BD) > 0).sum()) for x_BD in x_RD.split(CHUNK))
    return max(1, round(n_active / len(x_RD))) if n_active else None


def magnitudes(autoencoder: LoadedAutoencoder, x_BD: Tensor) -> Tensor:
    """What there is to choose from, non-negative [B, N]."""
    if autoencoder.facts.k is None:
        code = autoencoder.encode(x_BD).code
        assert isinstance(code, Dense)
        return code.values_BN
    input_BD, _ = normalized(x_BD, autoencoder.facts.normalization)
    return autoencoder.pre_acts(input_BD).relu_()


def recovered(
    autoencoder: LoadedAutoencoder, x_RD: Tensor, levels: Sequence[int], told: Told
) -> Recovered:
    """For each k' of `levels` (ascending), of raw vectors [R, D]."""
    thresholds_L = _thresholds(autoencoder, x_RD, levels)
    errors_2LR = torch.zeros(2, len(levels), len(x_RD), dtype=torch.float64)
    active_2L = torch.zeros(2, len(levels), dtype=torch.float64)
    chunks = x_RD.split(CHUNK)
    for number, x_BD in enumerate(chunks):
        rows = slice(number * CHUNK, number * CHUNK + len(x_BD))
        input_BD, _ = normalized(x_BD, autoencoder.facts.normalization)
        target_BD = input_BD - autoencoder.b_pre
        z_BN = magnitudes(autoencoder, x_BD)
        for place, masks in enumerate(_chosen(z_BN, levels, thresholds_L)):
            for how, kept_BN in enumerate(masks):
                error_BD = target_BD - kept_BN @ autoencoder.w_dec
                errors_2LR[how, place, rows] = error_BD.double().square().sum(dim=1).cpu()
                active_2L[how, place] += int((kept_BN > 0).sum())
        told(number + 1, len(chunks))
    total = _total(x_RD, autoencoder.facts.normalization)
    return Recovered(list(levels), thresholds_L, errors_2LR, active_2L / len(x_RD), total)


def _thresholds(autoencoder: LoadedAutoencoder, x_RD: Tensor, levels: Sequence[int]) -> Tensor:
    """For each k' the value above which k' magnitudes of a vector are, on average, float32 [L]."""
    width = min(autoencoder.facts.n_latents, HEADROOM * max(levels))
    largest_RW = torch.cat(
        [magnitudes(autoencoder, x_BD).topk(width, dim=1).values for x_BD in x_RD.split(CHUNK)]
    )
    falling = largest_RW.flatten().sort(descending=True).values
    # The first one left out, so that what is above it is k' per vector.
    first_out_L = torch.tensor([level * len(x_RD) for level in levels]).clamp_max(len(falling) - 1)
    return falling[first_out_L]


def _chosen(
    z_BN: Tensor, levels: Sequence[int], thresholds_L: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each level the magnitudes that the two ways keep, [B, N]."""
    largest = z_BN.topk(max(levels), dim=1)
    for level, threshold in zip(levels, thresholds_L.tolist(), strict=True):
        ids_BK, values_BK = largest.indices[:, :level], largest.values[:, :level]
        topk_BN = torch.zeros_like(z_BN).scatter_(1, ids_BK, values_BK)
        yield topk_BN, torch.where(z_BN > threshold, z_BN, 0)


def _ratios(found: Recovered, k: int) -> dict[str, Estimate]:
    """To the error at k; undefined where there is no such level, or no error."""
    topk_LR, threshold_LR = found.errors_2LR
    own_R = topk_LR[found.levels.index(k)]

    def ratio(level: int, errors_LR: Tensor) -> Estimate:
        if level not in found.levels:
            return over_vectors(own_R, torch.zeros_like(own_R))
        return over_vectors(errors_LR[found.levels.index(level)], own_R)

    ratios = (ratio(level, topk_LR) for level in (k // 2, 2 * k, LARGEST * k))
    return dict(zip(COLUMNS, (*ratios, ratio(k, threshold_LR)), strict=True))


def _total(x_RD: Tensor, kind: str) -> float:
    input_RD, _ = normalized(x_RD, kind)
    return float((input_RD - input_RD.double().mean(dim=0)).square().sum())
