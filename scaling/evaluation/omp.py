"""What an encoder leaves on the table: its error over that of a sparse coder with its decoder.

    omp_gap           E(encoder) / E(OMP): magnitudes of either sign
    omp_gap_positive  E(encoder) / E(non-negative gradient pursuit, magnitudes then refined): what a
                      code such as an encoder's could reach
    omp_gap_pursuit   E(encoder) / E(gradient pursuit), of either sign: how near the cheaper coder
                      comes to OMP

E is the sum of squared errors over the same vectors, in the space of the autoencoder's input, so
that each gap is a ratio of normalized MSEs. Every coder has the encoder's decoder and, for each
vector, as many latents: k where the autoencoder has one, else as many as the encoder gave it.
1 = the encoder does as well; the gap is what amortized inference costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from scaling.evaluation.estimate import Estimate
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Measured, Subject, Told
from scaling.evaluation.pursuit import Coded, gradient_pursuit, omp
from scaling.evaluation.refine import refined_sample
from scaling.evaluation.sampled import (
    Chosen,
    Sample,
    check_counts,
    gap,
    sample,
    some_vectors,
    squared_errors,
)


@dataclass
class Options:
    vectors: int = 1024
    """Held-out vectors, drawn at random (seed 0) from those of the contexts."""
    max_active: int = 256
    """Vectors with more active latents are left out, and counted: cost grows with the fullest."""


class SparseCoding:
    """See the module."""

    name = "omp"
    version = 1
    packages = ()
    on_text = False

    def settings(self, options: Options) -> Mapping[str, object]:
        check_counts(self.name, options)
        return asdict(options)

    def measure(self, run: Subject, material: Material, options: Options, told: Told) -> Measured:
        decoder_ND = run.autoencoder.w_dec
        everything = sample(run.autoencoder, some_vectors(material, options.vectors))
        counts_R = budgets(everything, run.autoencoder.facts.k)
        few_R = counts_R <= options.max_active
        found, counts_R = only(everything, few_R), counts_R[few_R]
        n_left_out = len(everything.target_RD) - len(found.target_RD)
        notes: dict[str, object] = {"n_vectors": len(counts_R), "n_left_out": n_left_out}
        if not len(counts_R):
            why = f"all vectors have more than omp.max_active={options.max_active} active latents"
            undefined = dict.fromkeys(_CODERS, why)
            return Measured(dict.fromkeys(_CODERS, None), {**notes, "undefined": undefined})
        own_R = found.errors(decoder_ND)
        own = float(own_R.sum()) / found.total
        notes |= {"normalized_mse": own, "k": float(counts_R.double().mean())}
        gaps: dict[str, Estimate] = {}
        for done, (column, code) in enumerate(_CODERS.items(), start=1):
            started = time.monotonic()
            errors_R = code(found, decoder_ND, counts_R)
            # Each run leaves out its own: vectors keep their places among those drawn for all.
            gaps[column] = gap(own_R, errors_R, found.total).among(few_R.cpu().numpy())
            notes[column] = {
                "normalized_mse": float(errors_R.sum()) / found.total,
                "seconds": round(time.monotonic() - started, 3),
            }
            told(done, len(_CODERS))
        perfect = [column for column, one in gaps.items() if one.value is None]
        notes["undefined"] = dict.fromkeys(perfect, "the coder leaves no error")
        return Measured.of(gaps, notes, units=material.units)


def budgets(found: Sample, k: int | None) -> Tensor:
    """How many latents a coder may use for each vector, int64 [R]."""
    counts_R = found.chosen.counts_R
    return counts_R if k is None else torch.full_like(counts_R, k)


def only(found: Sample, wanted_R: Tensor) -> Sample:
    """The sample without the other vectors; normalized MSE is about the mean of what is left."""
    if bool(wanted_R.all()):
        return found
    target_RD = found.target_RD[wanted_R]
    total = float((target_RD - target_RD.double().mean(dim=0)).square().sum())
    return Sample(target_RD, Chosen(*(part[wanted_R] for part in found.chosen)), total)


def _omp(found: Sample, decoder_ND: Tensor, counts_R: Tensor) -> Tensor:
    return omp(found.target_RD, decoder_ND, counts_R).errors_B


def _pursuit(found: Sample, decoder_ND: Tensor, counts_R: Tensor) -> Tensor:
    return gradient_pursuit(found.target_RD, decoder_ND, counts_R).errors_B


def _positive(found: Sample, decoder_ND: Tensor, counts_R: Tensor) -> Tensor:
    coded = gradient_pursuit(found.target_RD, decoder_ND, counts_R, positive=True)
    return refined_errors(found, decoder_ND, coded, counts_R)


def refined_errors(found: Sample, decoder_ND: Tensor, coded: Coded, counts_R: Tensor) -> Tensor:
    """Squared errors [R] once the magnitudes of a non-negative code are the best for its rows."""
    chosen = Chosen(coded.ids_BK, coded.values_BK, counts_R)
    values_RK = refined_sample(found._replace(chosen=chosen), decoder_ND)
    return squared_errors(found.target_RD, decoder_ND, coded.ids_BK, values_RK)


_CODERS: dict[str, Callable[[Sample, Tensor, Tensor], Tensor]] = {
    "omp_gap": _omp,
    "omp_gap_positive": _positive,
    "omp_gap_pursuit": _pursuit,
}
"""Column to the coder that the encoder is held against: its squared errors, [R]."""
