"""How a live stream divides an epoch into blocks: arithmetic only.

A block is what is made, shuffled and kept together: a whole number of forward passes. Its vectors
are cut to a number fixed beforehand, so that the place of every vector of the stream is known
without making any: contexts are added for a spare share of the positions, and what outliers leave
of it is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaling.activations.recipe import Recipe
from scaling.errors import UserError

STREAM_VERSION = 1
"""Part of the identity and of every seed: raise it when the same stream would give other vectors,
or give them in another order."""
SPARE = 64
"""One position in so many is spare: room for outliers, for which the stream cannot wait."""


@dataclass(frozen=True)
class StreamShape:
    """The blocks of an epoch; every block is made from as many contexts."""

    n_train: int
    """Vectors of an epoch."""
    n_blocks: int
    block_contexts: int
    rows_per_context: int
    buffer_tokens: int
    """Positions that a block may have."""

    @property
    def n_contexts(self) -> int:
        """Contexts of an epoch."""
        return self.n_blocks * self.block_contexts

    @property
    def block_rows(self) -> int:
        """Positions of a block, of which all but outliers and the rest cut off are given out."""
        return self.block_contexts * self.rows_per_context

    @property
    def identity(self) -> dict[str, int]:
        """What the order of the stream depends on."""
        return {
            "n_train": self.n_train,
            "n_blocks": self.n_blocks,
            "block_contexts": self.block_contexts,
        }

    @property
    def cut_share(self) -> float:
        """Share of the positions that are computed but not given out, outliers among them."""
        return 1 - self.n_train / (self.n_contexts * self.rows_per_context)

    def start(self, block: int) -> int:
        """Place in the epoch of the block's first vector; start(n_blocks) is the epoch's end."""
        return block * self.n_train // self.n_blocks

    def block_of(self, position: int) -> int:
        """The block that holds the vector at this place in the epoch."""
        return ((position + 1) * self.n_blocks - 1) // self.n_train


def stream_shape(n_train: int, buffer_tokens: int, recipe: Recipe) -> StreamShape:
    """As few blocks as hold `n_train` vectors in at most `buffer_tokens` positions each, all of
    one size (but for one vector).

    Raises:
        UserError: a buffer smaller than one forward pass.
    """
    batch_rows = recipe.batch_contexts * recipe.rows_per_context
    if buffer_tokens < batch_rows:
        raise UserError(
            f"activations.buffer_tokens={buffer_tokens} is less than the {batch_rows} vectors of "
            f"one forward pass (activations.batch_contexts={recipe.batch_contexts}): raise it, or "
            "lower batch_contexts."
        )
    largest_rows = buffer_tokens // batch_rows * batch_rows
    n_blocks = -(-n_train // max(1, _without_spare(largest_rows)))
    rows = -(-n_train // n_blocks) * SPARE // (SPARE - 1) + 1
    batches = min(-(-rows // batch_rows), largest_rows // batch_rows)
    return StreamShape(
        n_train=n_train,
        n_blocks=n_blocks,
        block_contexts=batches * recipe.batch_contexts,
        rows_per_context=recipe.rows_per_context,
        buffer_tokens=buffer_tokens,
    )


def largest_n_train(n_contexts: int, buffer_tokens: int, recipe: Recipe) -> int:
    """About the most vectors per epoch that so many contexts can give; 0 where they give none."""
    n_train = _without_spare(n_contexts * recipe.rows_per_context)
    while n_train > 0:
        needed = stream_shape(n_train, buffer_tokens, recipe).n_contexts
        if needed <= n_contexts:
            break
        n_train = n_train * n_contexts // needed  # needed is larger: it falls each time
    return n_train


def _without_spare(n_rows: int) -> int:
    return n_rows * (SPARE - 1) // SPARE
