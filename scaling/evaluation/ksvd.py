"""K-SVD: a dictionary learned for sparse coding itself, without an encoder (Aharon et al. 2006).

    code    every training vector by OMP, k rows each
    update  each row in turn, with the magnitudes it is used at, toward the best rank-1 fit of what
            the other rows leave of the vectors that use it (one power iteration, as in Rubinstein
            et al. 2008)

Starts from training vectors; a row that no vector uses becomes the vector that is made worst.
Centered on the mean of the training vectors, which takes the place of b_pre.

    ksvd_gap   E(encoder) / E(OMP with the K-SVD dictionary of the same n and k), over the same
               held-out vectors: above 1 where classical dictionary learning does better

It takes a few vectors per row to learn anything, and time that grows as n times vectors times k:
undefined where `ksvd.vectors` is less than `ksvd.per_row` times n.

Shapes: B training vectors, D = d_model, N rows, K chosen rows, U vectors that use a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from scaling.activations.manifest import load_manifest
from scaling.activations.store import ShardedRows
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Measured, Subject, Told
from scaling.evaluation.pursuit import omp
from scaling.evaluation.sampled import SEED, check_counts, gap, sample, some_vectors


@dataclass
class Options:
    vectors: int = 8192
    """Training vectors to learn from: the first of the harvest, which are in random order."""
    iterations: int = 4
    per_row: int = 4
    """Least training vectors per row."""
    evaluated: int = 512
    """Held-out vectors, drawn at random (seed 0) from those of the contexts."""


class KSVD:
    """See the module."""

    name = "ksvd"
    version = 1
    packages = ()
    on_text = True

    def settings(self, options: Options) -> Mapping[str, object]:
        check_counts(self.name, options)
        return asdict(options)

    def measure(self, run: Subject, material: Material, options: Options, told: Told) -> Measured:
        n_latents = run.autoencoder.facts.n_latents
        needed = options.per_row * n_latents
        training_BD = _training(material, options.vectors) if needed <= options.vectors else None
        if training_BD is None or len(training_BD) < needed:
            why = f"{n_latents} rows need ksvd.vectors={needed} of a harvest that has as many"
            return Measured({"ksvd_gap": None}, {"undefined": {"ksvd_gap": why}})
        training_BD = training_BD.to(run.autoencoder.b_pre)
        found = sample(run.autoencoder, some_vectors(material, options.evaluated))
        k = run.autoencoder.facts.k or max(1, round(float(found.chosen.counts_R.double().mean())))
        # Of n, k and the options alone: runs of other seeds and learning rates share it.
        learned = material.once(
            f"ksvd {n_latents} {k} {sorted(asdict(options).items())}",
            lambda _: learn(
                training_BD.to(found.target_RD), n_latents, k, options.iterations, told
            ),
        )
        input_RD = found.target_RD + run.autoencoder.b_pre
        counts_R = torch.full_like(found.chosen.counts_R, k)
        errors_R = omp(input_RD - learned.mean_D, learned.rows_ND, counts_R).errors_B
        own_R = found.errors(run.autoencoder.w_dec)
        ratio = gap(own_R, errors_R, found.total)
        why = {} if ratio.value is not None else {"ksvd_gap": "K-SVD leaves no error"}
        return Measured.of(
            {"ksvd_gap": ratio},
            {
                "normalized_mse": float(own_R.sum()) / found.total,
                "normalized_mse_ksvd": float(errors_R.sum()) / found.total,
                "normalized_mse_in_training": learned.mse_of_iterations,
                "k": k,
                "undefined": why,
                "n_vectors": len(input_RD),
            },
            units=material.units,
        )


@dataclass(frozen=True)
class Learned:
    rows_ND: Tensor
    """float32, of norm 1."""
    mean_D: Tensor
    mse_of_iterations: list[float]
    """Of the training vectors, coded with what the iteration before it had learned; normalized."""


def learn(x_BD: Tensor, n_rows: int, k: int, iterations: int, told: Told | None = None) -> Learned:
    """A dictionary of training vectors, float32 [B, D], B >= n_rows."""
    mean_D = x_BD.mean(dim=0)
    centered_BD = x_BD - mean_D
    generator = torch.Generator().manual_seed(SEED)
    first = torch.randperm(len(x_BD), generator=generator)[:n_rows]
    rows_ND = torch.nn.functional.normalize(centered_BD[first], dim=1)
    counts_B = torch.full((len(x_BD),), k, device=x_BD.device)
    total, errors = float(centered_BD.double().square().sum()), []
    for iteration in range(iterations):
        coded = omp(centered_BD, rows_ND, counts_B)
        errors.append(float(coded.errors_B.sum()) / total)
        rows_ND = updated(centered_BD, rows_ND, coded.ids_BK, coded.values_BK)
        if told is not None:
            told(iteration + 1, iterations)
    return Learned(rows_ND, mean_D, errors)


@torch.no_grad()
def updated(x_BD: Tensor, rows_ND: Tensor, ids_BK: Tensor, values_BK: Tensor) -> Tensor:
    """The rows after each had its turn; the error with the magnitudes that go with it never rises.

    A turn at a time, as each sees the rows and magnitudes that those before it left.
    """
    rows_ND, values_BK = rows_ND.clone(), values_BK.clone()
    residual_BD = x_BD.clone()
    for rows in torch.arange(len(x_BD)).split(256):
        made_BD = torch.bmm(values_BK[rows].unsqueeze(1), rows_ND[ids_BK[rows]]).squeeze(1)
        residual_BD[rows] -= made_BD
    worst_first = iter(residual_BD.square().sum(dim=1).argsort(descending=True))
    for row, (vector_U, place_U) in enumerate(_users(ids_BK, values_BK, len(rows_ND))):
        if not len(vector_U):
            rows_ND[row] = torch.nn.functional.normalize(x_BD[next(worst_first)], dim=0)
            continue
        value_U = values_BK[vector_U, place_U]
        left_UD = residual_BD[vector_U] + value_U[:, None] * rows_ND[row]
        rows_ND[row] = torch.nn.functional.normalize(value_U @ left_UD, dim=0)
        value_U = left_UD @ rows_ND[row]
        values_BK[vector_U, place_U] = value_U
        residual_BD[vector_U] = left_UD - value_U[:, None] * rows_ND[row]
    return rows_ND


def _users(ids_BK: Tensor, values_BK: Tensor, n_rows: int) -> list[tuple[Tensor, Tensor]]:
    """For each row the vectors that use it, and at which of their places."""
    vector_P, place_P = (values_BK != 0).nonzero(as_tuple=True)
    row_P = ids_BK[vector_P, place_P]
    order = row_P.argsort(stable=True)
    sizes = torch.bincount(row_P, minlength=n_rows).tolist()
    parts = zip(vector_P[order].split(sizes), place_P[order].split(sizes), strict=True)
    return list(parts)


def _training(material: Material, n_vectors: int) -> Tensor:
    """The first training vectors, or all that are stored: normalized, float32 [B, D]."""
    folder = material.request.store(material.request.layer)
    manifest = load_manifest(folder)
    if manifest is None:
        return torch.zeros(0, 0)
    n_vectors = min(n_vectors, manifest.n_rows("train"))
    return ShardedRows(folder, manifest, "train", n_vectors).read(np.arange(n_vectors))
