"""Making one block of a live stream: contexts through the subject model, and their order.

Shapes: C contexts, T tokens per context, D = d_model, R positions of the block, V vectors that it
gives out, B of them in a batch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaling.activations.order import RowOrder
from scaling.activations.prefetch import Stopped, Stopping
from scaling.activations.recipe import Recipe
from scaling.activations.stream_shape import STREAM_VERSION, StreamShape
from scaling.activations.vectors import layer_vectors
from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.activations.contexts import Contexts
    from scaling.activations.subject import Subject


class BlockKey(NamedTuple):
    """Which block: of which order, in which epoch."""

    seed: int
    epoch: int
    block: int


class Block(NamedTuple):
    rows_RD: Tensor
    """All positions, in the stored dtype, as they were made."""
    order_V: Tensor
    """int64: the rows to give out, in order."""

    def vectors(self, start: int, stop: int) -> Tensor:
        """The vectors at these places of the block, float32 [B, D]: a copy."""
        return self.rows_RD[self.order_V[start:stop]].float()


@dataclass(frozen=True)
class StreamCounts:
    """What became of the positions of all blocks made so far."""

    blocks: int = 0
    vectors: int = 0
    """Given out, or ready to be."""
    dropped_position: int = 0
    dropped_outlier: int = 0
    dropped_cut: int = 0
    """Good vectors beyond those that a block gives out."""
    repeated: int = 0
    """Given out twice, where outliers took more than the spare positions."""

    def to_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class BlockMaker:
    """Makes any block of a stream: a pure function of its key, whatever was made before."""

    subject: Subject
    contexts: Contexts
    recipe: Recipe
    shape: StreamShape
    layer: int
    max_norm: float
    d_model: int
    counts: StreamCounts = StreamCounts()
    """Replaced as a whole, so that another thread may read it at any time."""

    def make(self, key: BlockKey, stopping: Stopping = lambda: False) -> Block:
        """Compute a block; may be called from one thread at a time.

        Raises:
            UserError: non-finite activations, nothing but outliers, or values that the dtype
                cannot hold.
            Stopped: `stopping` told so.
        """
        shape = self.shape
        first = key.epoch * shape.n_contexts + key.block * shape.block_contexts
        ids = RowOrder(shape.n_contexts, key.seed).rows(first, shape.block_contexts)
        rows_RD, norms_R = self._forward(ids, stopping)
        good_R = norms_R <= self.max_norm
        n_vectors = shape.start(key.block + 1) - shape.start(key.block)
        order_V = block_order(key, good_R.numpy(), n_vectors)
        self._check(rows_RD, order_V)
        self._count(int(good_R.sum()), len(norms_R), n_vectors)
        return Block(rows_RD, torch.from_numpy(order_V))

    def _forward(self, ids: NDArray[np.int64], stopping: Stopping) -> tuple[Tensor, Tensor]:
        """Rows and raw norms of the contexts' positions, forward pass by forward pass."""
        n_rows, recipe = len(ids) * self.recipe.rows_per_context, self.recipe
        rows_RD = torch.empty(n_rows, self.d_model, dtype=getattr(torch, recipe.store_dtype))
        norms_R = torch.empty(n_rows)
        for start in range(0, len(ids), recipe.batch_contexts):
            if stopping():
                raise Stopped
            batch = ids[start : start + recipe.batch_contexts]
            made = layer_vectors(
                self.subject, self.contexts[batch], recipe, name_of=partial(_context_name, batch)
            )[self.layer]
            to = slice(start * recipe.rows_per_context, None)
            rows_RD[to][: len(made.rows_RD)] = made.rows_RD
            norms_R[to][: len(made.norms_R)] = made.norms_R
        return rows_RD, norms_R

    def _check(self, rows_RD: Tensor, order_V: NDArray[np.int64]) -> None:
        if not len(order_V):
            raise UserError(
                f"activations.outlier_factor={self.recipe.outlier_factor:g}: every vector of a "
                f"block of the stream has a norm above {self.max_norm:g}; none is left to train "
                "on. Raise outlier_factor."
            )
        # Only without normalization can a vector that was finite overflow here.
        may_overflow = self.recipe.normalization == "none" and rows_RD.dtype == torch.float16
        if may_overflow and not rows_RD[torch.from_numpy(order_V)].isfinite().all():
            raise UserError(
                "activations.store_dtype=float16 cannot hold the activations of layer "
                f"{self.layer} without normalization: set activations.store_dtype=bfloat16, or "
                "activations.normalization=unit_norm."
            )

    def _count(self, n_good: int, n_rows: int, n_vectors: int) -> None:
        before = self.counts
        dropped_position = self.shape.block_contexts * self.recipe.drop_positions
        self.counts = StreamCounts(
            blocks=before.blocks + 1,
            vectors=before.vectors + n_vectors,
            dropped_position=before.dropped_position + dropped_position,
            dropped_outlier=before.dropped_outlier + n_rows - n_good,
            dropped_cut=before.dropped_cut + max(0, n_good - n_vectors),
            repeated=before.repeated + max(0, n_vectors - n_good),
        )


def block_order(key: BlockKey, good_R: NDArray[np.bool_], n_vectors: int) -> NDArray[np.int64]:
    """Which rows the block gives out, in an order of its own: int64 [n_vectors].

    Where there are too few good ones they begin again from the first, since the place of all later
    vectors is settled. Empty where there is none.
    """
    rng = np.random.default_rng([STREAM_VERSION, key.seed, key.epoch, key.block])
    shuffled = rng.permutation(len(good_R))
    kept = shuffled[good_R[shuffled]]
    return np.resize(kept, n_vectors) if len(kept) else kept


def _context_name(batch: NDArray[np.int64], place: int) -> str:
    return f"train context {batch[place]}"
