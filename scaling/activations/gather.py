"""Rows picked from a list of arrays as if they were one."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Arrays(Protocol):
    """Arrays of equal row length, made or mapped when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[Any]: ...


def gather_rows(arrays: Arrays, stops: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of the concatenation of `arrays`, whose running total lengths are `stops`.

    Each array is touched once, in turn, so they may be mapped lazily. `rows` must not be empty.
    """
    if len(arrays) == 1:
        return arrays[0][rows]
    array_of = np.searchsorted(stops, rows, side="right")
    by_array = np.argsort(array_of, kind="stable")
    starts = np.concatenate([[0], stops[:-1]])
    pieces = []
    for group in np.split(by_array, np.flatnonzero(np.diff(array_of[by_array])) + 1):
        index = int(array_of[group[0]])
        pieces.append(arrays[index][rows[group] - starts[index]])
    gathered = np.empty((len(rows), *pieces[0].shape[1:]), pieces[0].dtype)
    gathered[by_array] = np.concatenate(pieces)
    return gathered
