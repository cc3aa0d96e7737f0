"""The order in which a run reads stored vectors: a pure function of (seed, position).

Position p of the endless stream lies in epoch p // n_rows; each epoch visits every row once, in a
permutation of its own. A permutation is a keyed Feistel network over blocks of rows with
cycle-walking (as in format-preserving encryption), so that any position is computed alone: nothing
to store, nothing to restore on resume.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 1
"""Seeds the keys: raise it when the same seed would give another order."""
WINDOW = 65_536
"""Positions of an epoch computed at once. Affects speed only."""
ROUNDS = 6

Rows = NDArray[np.int64]


class RowOrder:
    """The order of `n_rows` rows under `seed`, in blocks of `block` consecutive rows.

    Where n_rows is not a multiple of `block`, the remaining rows close the epoch; since each epoch
    also rotates the rows by a random offset, they are others each time.
    """

    def __init__(self, n_rows: int, seed: int, block: int = 1) -> None:
        if n_rows < 1 or block < 1 or seed < 0:
            raise ValueError(f"no order of {n_rows} rows in blocks of {block} with seed {seed}")
        self._n_rows = n_rows
        self._seed = seed
        self._block = min(block, n_rows)
        self._window_key = (-1, -1)
        self._window: Rows = np.empty(0, np.int64)

    def rows(self, start: int, count: int) -> Rows:
        """Row numbers at positions [start, start + count) of the stream, int64 [count]."""
        stop = start + count
        pieces = []
        while start < stop:
            epoch, position = divmod(start, self._n_rows)
            window = self._load_window(epoch, position // WINDOW)
            piece = window[position % WINDOW :][: stop - start]
            pieces.append(piece)
            start += len(piece)
        return np.concatenate(pieces)

    def _load_window(self, epoch: int, index: int) -> Rows:
        """Window `index` of an epoch; the last one read is kept."""
        if self._window_key != (epoch, index):
            stop = min((index + 1) * WINDOW, self._n_rows)
            positions = np.arange(index * WINDOW, stop, dtype=np.int64)
            self._window = self._epoch_rows(epoch, positions)
            self._window_key = (epoch, index)
        return self._window

    def _epoch_rows(self, epoch: int, positions: Rows) -> Rows:
        entropy = np.random.SeedSequence([ORDER_VERSION, self._seed, epoch])
        *keys, turn = entropy.generate_state(ROUNDS + 1, np.uint64)
        n_blocks = self._n_rows // self._block
        block, offset = np.divmod(positions, self._block)
        whole = block < n_blocks
        block[whole] = _permute(block[whole].astype(np.uint64), n_blocks, keys).astype(np.int64)
        rotation = int(turn) % self._n_rows
        return (block * self._block + offset + rotation) % self._n_rows


def _permute(values: NDArray[np.uint64], size: int, keys: list[np.uint64]) -> NDArray[np.uint64]:
    """A keyed permutation of range(size), at `values`."""
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    permuted = _feistel(values, half_bits, keys)
    outside = np.flatnonzero(permuted >= size)
    while outside.size:  # walk the cycle until it comes back inside
        permuted[outside] = _feistel(permuted[outside], half_bits, keys)
        outside = outside[permuted[outside] >= size]
    return permuted


def _feistel(
    values: NDArray[np.uint64], half_bits: int, keys: list[np.uint64]
) -> NDArray[np.uint64]:
    """A keyed permutation of range(4^half_bits)."""
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
