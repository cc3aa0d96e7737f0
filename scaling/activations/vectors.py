"""From a batch of contexts to the rows that are stored.

Shapes: C contexts, T tokens per context, D = d_model, R = C * (T - dropped positions) rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scaling.activations.normalize import normalize
from scaling.activations.recipe import Recipe
from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.activations.contexts import Contexts
    from scaling.activations.subject import Subject


class Vectors(NamedTuple):
    rows_RD: Tensor
    """Normalized, in the stored dtype, on the CPU."""
    norms_R: Tensor
    """float32 norms of the raw vectors."""


def layer_vectors(
    subject: Subject, batch_CT: Contexts, recipe: Recipe, *, name_of: Callable[[int], str]
) -> dict[int, Vectors]:
    """Layer to the vectors of one forward pass, without the first positions.

    `name_of` a context of the batch, by its place there, is for the error message only.

    Raises:
        UserError: non-finite activations.
    """
    ids = torch.from_numpy(batch_CT.astype("int64"))
    residuals = subject.residuals(ids)
    return {
        layer: _stored(residual_CTD, recipe, layer, name_of)
        for layer, residual_CTD in residuals.items()
    }


def part_bytes(batches: Sequence[Vectors]) -> bytes:
    """The content of a part file: all rows, then all norms."""
    rows = torch.cat([vectors.rows_RD for vectors in batches]).contiguous()
    norms = torch.cat([vectors.norms_R for vectors in batches]).contiguous()
    return rows.view(torch.uint8).numpy().tobytes() + norms.numpy().tobytes()


def _stored(
    residual_CTD: Tensor, recipe: Recipe, layer: int, name_of: Callable[[int], str]
) -> Vectors:
    # In float32 from here: norms of sink positions overflow float16.
    x_RD = residual_CTD[:, recipe.drop_positions :].float().flatten(0, 1)
    norms_R = x_RD.norm(dim=1)
    if not torch.isfinite(norms_R).all():
        raise _not_finite(norms_R, recipe, layer, name_of)
    rows_RD = normalize(x_RD, recipe.normalization).to(getattr(torch, recipe.store_dtype))
    return Vectors(rows_RD.cpu(), norms_R.cpu())


def _not_finite(
    norms_R: Tensor, recipe: Recipe, layer: int, name_of: Callable[[int], str]
) -> UserError:
    row = int((~torch.isfinite(norms_R)).nonzero()[0])
    position = row % recipe.rows_per_context + recipe.drop_positions
    return UserError(
        f"activations.model gives NaN or infinite activations at activations.layer={layer} "
        f"({name_of(row // recipe.rows_per_context)}, position {position}); nothing was stored. "
        "Check the model's weights, or try activations.model_dtype=float32."
    )
