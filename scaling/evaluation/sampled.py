"""The vectors and active sets that sparse coding starts from, as an autoencoder sees them.

Everything is in the space of the autoencoder's input: normalized vectors minus b_pre, which its
decoder alone has to make. Errors there are those of training.

Shapes: R vectors, D = d_model, N latents, K active latents of the fullest vector.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scaling.autoencoder.code import Code, Dense
from scaling.errors import UserError
from scaling.evaluation.estimate import Estimate
from scaling.evaluation.material import Material
from scaling.interchange.model import LoadedAutoencoder
from scaling.interchange.normalization import normalized

SEED = 0
ROUNDING = 1e-10
"""Of the vectors' sum of squares about their mean: what float32 leaves of a perfect code, and more
than enough."""


class Chosen(NamedTuple):
    """The active latents of each vector, largest first; places beyond a vector's count hold 0."""

    ids_RK: Tensor
    """int64."""
    values_RK: Tensor
    """Non-negative."""
    counts_R: Tensor
    """int64: how many are above 0."""


class Sample(NamedTuple):
    """What a dictionary is to make, and what the encoder chose for it."""

    target_RD: Tensor
    """Normalized vectors minus b_pre, float32."""
    chosen: Chosen
    total: float
    """Sum of squared distances of the vectors from their own mean: the unit of normalized MSE."""

    def errors(self, decoder_ND: Tensor) -> Tensor:
        """The encoder's own squared errors, float64 [R]."""
        return squared_errors(self.target_RD, decoder_ND, self.chosen.ids_RK, self.chosen.values_RK)


def check_counts(metric: str, options: Any) -> None:
    """Raises UserError where a count among a metric's options is below 1."""
    for key, value in asdict(options).items():
        if isinstance(value, int) and value < 1:
            raise UserError(f"{metric}.{key}={value} must be at least 1.")


def kept_vectors(material: Material) -> Tensor:
    """All vectors that autoencoders are for, in the order of the text: float32 [R, D], raw."""
    return torch.cat([batch.residual_CTD[batch.kept_CT].float() for batch in material.batches()])


def some_vectors(material: Material, n_vectors: int) -> Tensor:
    """A random `n_vectors` of them (seed 0), or all where there are fewer.

    Raises:
        UserError: they do not differ, so that no error can be told in units of their spread.
    """
    vectors_RD = kept_vectors(material)
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randperm(len(vectors_RD), generator=generator)[:n_vectors]
    found_RD = vectors_RD[rows.sort().values]
    if not bool((found_RD != found_RD[:1]).any()):
        raise UserError(
            f"{len(found_RD)} held-out vectors that do not differ have no spread to measure errors "
            "by: raise the number of vectors, or contexts."
        )
    return found_RD


def sample(autoencoder: LoadedAutoencoder, x_RD: Tensor, chunk: int = 256) -> Sample:
    """Raw vectors and the autoencoder's code of them, on its device, `chunk` at a time."""
    x_RD = x_RD.to(autoencoder.b_pre)
    input_RD, _ = normalized(x_RD, autoencoder.facts.normalization)
    parts = [chosen(autoencoder.encode(part).code) for part in x_RD.split(chunk)]
    total = float((input_RD - input_RD.double().mean(dim=0)).square().sum())
    return Sample(input_RD - autoencoder.b_pre, _joined(parts), total)


def chosen(code: Code) -> Chosen:
    """The active latents of a code, padded to the fullest vector's count (at least 1)."""
    values, ids = _largest_first(code) if isinstance(code, Dense) else code
    counts_R = (values > 0).sum(dim=1)
    width = max(1, int(counts_R.max()))
    return Chosen(ids[:, :width], values[:, :width].clamp_min(0), counts_R)


def squared_errors(
    target_RD: Tensor, decoder_ND: Tensor, ids_RK: Tensor, values_RK: Tensor
) -> Tensor:
    """|target - sum_j values_j decoder[ids_j]|^2 of each vector, float64 [R]."""
    errors_R = target_RD.new_zeros(len(target_RD), dtype=torch.float64)
    for rows in torch.arange(len(target_RD)).split(256):
        made_BD = torch.bmm(values_RK[rows].unsqueeze(1), decoder_ND[ids_RK[rows]]).squeeze(1)
        errors_R[rows] = (target_RD[rows] - made_BD).double().square().sum(dim=1)
    return errors_R


def gap(own_R: Tensor, errors_R: Tensor, total: float) -> Estimate:
    """An encoder's error over that of a coder; undefined where the coder leaves none but rounding,
    as with as many rows as dimensions."""
    is_left = float(errors_R.sum()) > ROUNDING * total
    return over_vectors(own_R, errors_R if is_left else torch.zeros_like(errors_R))


def over_vectors(above_R: Tensor, below_R: Tensor) -> Estimate:
    """The ratio of two sums over a sample of vectors."""
    return Estimate.ratio(above_R.cpu().numpy(), below_R.cpu().numpy(), "vectors")


def _largest_first(code: Dense) -> tuple[Tensor, Tensor]:
    n_active = max(1, int((code.values_BN > 0).sum(dim=1).max()))
    largest = code.values_BN.topk(n_active, dim=1)
    return largest.values, largest.indices


def _joined(parts: list[Chosen]) -> Chosen:
    """Of chunks of vectors, each padded to its own width."""
    width = max(part.ids_RK.shape[1] for part in parts)

    def wide(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))

    return Chosen(
        torch.cat([wide(part.ids_RK) for part in parts]),
        torch.cat([wide(part.values_RK) for part in parts]),
        torch.cat([part.counts_R for part in parts]),
    )
