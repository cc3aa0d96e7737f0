"""Parts: the vectors of a fixed run of contexts, the unit of sharing work and of resuming.

What a part holds depends on its number and the recipe alone, so it does not matter which process
makes it, or when. A file per layer: the normalized rows, then their raw float32 norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scaling.activations.manifest import NUMPY_DTYPES
from scaling.activations.recipe import Recipe
from scaling.storage.atomic import write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaling.activations.contexts import Contexts
    from scaling.activations.subject import Subject

NORM_BYTES = 4
FOLDER = "parts"


@dataclass(frozen=True)
class Part:
    """Contexts [number * part_contexts, (number + 1) * part_contexts) of one split."""

    split: str
    number: int

    def path(self, work: Path, layer: int) -> Path:
        return work / FOLDER / f"{self.split}-{self.number:06d}-layer{layer}.part"

    def is_done(self, work: Path, layers: Sequence[int]) -> bool:
        return all(self.path(work, layer).is_file() for layer in layers)

    def contexts(self, contexts: Contexts, recipe: Recipe) -> Contexts:
        first = self.number * recipe.part_contexts
        return contexts[first : first + recipe.part_contexts]

    def name_context(self, first: int, place: int) -> str:
        """A context for people: the one at `place` after context `first`."""
        return f"{self.split} context {first + place}"


class PartRows(NamedTuple):
    rows: NDArray[Any]
    """[n, D] in the stored dtype, memory-mapped."""
    norms: NDArray[np.float32]
    """[n] norms of the raw vectors."""


def read_part(path: Path, d_model: int, dtype: str) -> PartRows:
    """Map one layer's file of a part."""
    kind = NUMPY_DTYPES[dtype]
    n_rows = path.stat().st_size // (d_model * kind.itemsize + NORM_BYTES)
    rows = np.memmap(path, kind, "r", shape=(n_rows, d_model))
    norms = np.fromfile(path, "<f4", offset=n_rows * d_model * kind.itemsize)
    return PartRows(np.asarray(rows), norms)


def harvest_part(
    part: Part,
    *,
    subject: Subject,
    contexts: Contexts,
    recipe: Recipe,
    work: Path,
    on_tokens: Callable[[int], None],
) -> None:
    """Make a part: forward its contexts batch by batch, write one file per layer.

    Raises:
        UserError: non-finite activations, or a full disk.
    """
    from scaling.activations.vectors import layer_vectors, part_bytes

    ids_CT = part.contexts(contexts, recipe)
    batches = []
    for start in range(0, len(ids_CT), recipe.batch_contexts):
        batch = ids_CT[start : start + recipe.batch_contexts]
        first = part.number * recipe.part_contexts + start
        batches.append(
            layer_vectors(subject, batch, recipe, name_of=partial(part.name_context, first))
        )
        on_tokens(len(batch) * recipe.rows_per_context)
    for layer in batches[0]:
        data = part_bytes([vectors[layer] for vectors in batches])
        write_bytes(part.path(work, layer), data)
