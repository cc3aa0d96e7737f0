"""How often, how strongly and where latents are active; which are silent, dense or dead.

Over the vectors of the held-out text that autoencoders are for, for each latent i:

    frequency   share of vectors with z_i > 0
    importance  rise of normalized MSE if z_i alone were 0:
                sum over vectors of (|e + z_i w_i|^2 - |e|^2) / sum of |x - mean|^2,  e = x - xhat
    position    bits that a firing gives about where in the context it is: `position_bits`

Columns of evaluation.json, over latents:

    density_l0          mean number of active latents of a vector
    density_silent      share that is active on none of the vectors
    density_dead        share that is silent over the last `dead_after_tokens` of them, which is the
                        run's own definition; undefined where the text has fewer vectors
    density_dense       share that is active on more than `dense` of the vectors
    density_median      median frequency of those that are not silent
    density_importance  share of all importance that the most important 1% have, those that do harm
                        (below 0) left out
    density_position    share of those active on 100 vectors or more of which position tells more
                        than 0.1 bits

The rest is kept for each latent in `evaluation/density.npz`: see `density_file.py`.

Shapes: B vectors, D = d_model, N latents, P active (vector, latent) pairs, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.evaluation import clusters
from scaling.evaluation.density_file import FILE_NAME, write_density
from scaling.evaluation.density_sums import DensitySums, summed
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Measured, Subject, Told
from scaling.runs.store import RunFolder

MIN_FIRINGS = 100
"""Below it, where in the context a latent fires cannot be told."""
POSITION_BITS = 0.1
RANGES = 8
LISTED = 20
_WHY = {
    "density_dead": "fewer held-out vectors than dead_after_tokens",
    "density_median": "no latent is active",
    "density_importance": "no latent is of use",
    "density_position": f"no text, or no latent fires {MIN_FIRINGS} times",
}
"""Such a column is undefined."""


@dataclass
class Options:
    dense: float = 0.1
    """A latent active on a larger share of vectors counts as dense."""
    layout: str = "pca"
    """Of the decoder in 2-D: pca or umap (which needs umap-learn)."""


class Density:
    """See the module."""

    name = "density"
    version = 1
    packages = ()
    on_text = False

    def settings(self, options: Options) -> Mapping[str, object]:
        _check(options)
        return asdict(options)

    def measure(self, run: Subject, material: Material, options: Options, told: Told) -> Measured:
        clusters.require_package(options.layout)  # skips this metric alone
        sums = summed(run.autoencoder, material, told)
        bits_N = position_bits(sums.by_position_N2T, sums.kept_T)
        run.folder.mkdir(exist_ok=True, parents=True)
        layout_N2 = clusters.layout(run.autoencoder.w_dec.cpu(), options.layout)
        write_density(run.folder / FILE_NAME, sums, bits_N, layout_N2, identity=run.identity)
        window = _dead_after(run)
        found = numbers(sums, bits_N, dense=options.dense, dead_after=window)
        if not material.has_text:
            found["density_position"] = None
        return Measured(
            numbers=found,
            notes={
                "n_vectors": sums.n_vectors,
                "dead_after_tokens": window,
                "file": FILE_NAME,
                "densest": _densest(sums),
                "undefined": {name: _WHY[name] for name, value in found.items() if value is None},
            },
        )


def numbers(
    sums: DensitySums, bits_N: Tensor, *, dense: float, dead_after: int | None
) -> dict[str, float | None]:
    """The columns; see the module."""
    frequency_N, fires_N = sums.frequency_N, sums.count_N > 0
    often_N = sums.count_N >= MIN_FIRINGS
    return {
        "density_l0": float(frequency_N.sum()),
        "density_silent": _share(~fires_N),
        "density_dead": _dead(sums, dead_after),
        "density_dense": _share(frequency_N > dense),
        "density_median": float(frequency_N[fires_N].quantile(0.5)) if fires_N.any() else None,
        "density_importance": _of_the_top(sums.importance_N, 0.01),
        "density_position": _share(bits_N[often_N] > POSITION_BITS) if often_N.any() else None,
    }


def position_bits(by_position_N2T: Tensor, kept_T: Tensor) -> Tensor:
    """What a firing tells of the position, in bits, at least 0: float64 [N].

    sum_g p_g log2(p'_g / q_g), p of one half of the contexts, p' of the other (with one firing
    more, spread as the vectors are, so that none is 0), q of all vectors; the mean of both ways.
    Firings come in bursts, so that chance makes p uneven, and p' too, but not alike: what is left
    holds in both. Ranges g are of neighbouring positions, with as equal numbers of vectors as
    these allow.
    """
    share_T = kept_T.double() / kept_T.sum()
    middle_T = share_T.cumsum(0) - share_T / 2
    range_T = (middle_T * RANGES).long().clamp(0, RANGES - 1)
    firings_N2G = torch.zeros(*by_position_N2T.shape[:2], RANGES, dtype=torch.float64)
    firings_N2G.index_add_(2, range_T, by_position_N2T.double())
    vectors_G = torch.zeros(RANGES, dtype=torch.float64).index_add_(0, range_T, share_T)
    count_N21 = firings_N2G.sum(dim=2, keepdim=True)
    p_N2G = firings_N2G / count_N21.clamp_min(1)
    ratio_N2G = (firings_N2G + vectors_G) / (count_N21 + 1) / vectors_G
    bits_N2G = torch.where(vectors_G > 0, p_N2G * ratio_N2G.flip(1).log2(), 0)
    return bits_N2G.sum(dim=2).mean(dim=1).clamp_min(0)


def _check(options: Options) -> None:
    if not 0 < options.dense < 1:
        raise UserError(f"density.dense={options.dense} must be above 0 and below 1.")
    clusters.check(options.layout)


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _dead(sums: DensitySums, dead_after: int | None) -> float | None:
    if dead_after is None or sums.n_vectors < dead_after:
        return None
    return _share(sums.n_vectors - 1 - sums.last_N >= dead_after)


def _of_the_top(importance_N: Tensor, share: float) -> float | None:
    n_top = max(1, round(share * len(importance_N)))
    useful_N = importance_N.clamp_min(0)
    total = float(useful_N.sum())
    return float(useful_N.topk(n_top).values.sum()) / total if total > 0 else None


def _densest(sums: DensitySums) -> list[dict[str, float]]:
    """The latents that fire most, for who looks for recurring ones among runs."""
    order = sums.frequency_N.argsort(descending=True, stable=True)[:LISTED].tolist()
    return [
        {
            "latent": i,
            "frequency": float(sums.frequency_N[i]),
            "importance": float(sums.importance_N[i]),
        }
        for i in order
    ]


def _dead_after(run: Subject) -> int | None:
    """The run's window, in tokens; None where it has none."""
    return (RunFolder(run.folder.parent).read_record().result or {}).get("dead_after_tokens")
