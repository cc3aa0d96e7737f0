"""Points and counts as a user types them: `n_latents=16k,64k k=32 tokens=1e9`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from analysis.errors import TableError
from analysis.laws.forms import Array

AXES = {
    **{"n_latents": "n", "n": "n", "k": "k", "tokens": "tokens"},
    **{"flops": "flops", "subject_params": "subject", "subject": "subject"},
}
"""What a user may call an axis -> its name in laws."""

_SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_MOST_POINTS = 10_000


def count(text: str, name: str) -> float:
    """ "65536", "64k" (64,000), "1.5M", "2B", "1e9" -> a number above 0. TableError otherwise."""
    body = text.strip()
    unit = _SUFFIXES.get(body[-1:], 1.0)
    try:
        value = float(body[:-1] if unit != 1.0 else body) * unit
    except ValueError:
        value = math.nan
    if not 0 < value < 1e30:
        raise TableError(
            f"{name}={text!r} is no number above 0; write digits, 1e9, or a suffix k (1,000), M, "
            "B or T, and commas between several."
        )
    # 0.1M is 100,000 and not the 100000.00000000001 that some products of decimals give.
    return float(f"{value:.15g}")


def counts(text: str, name: str) -> list[float]:
    """Numbers separated by commas, each once, in the order given."""
    return list(dict.fromkeys(count(part, name) for part in text.split(",")))


def grid(words: Sequence[str]) -> dict[str, Array]:
    """Every combination of `NAME=VALUE[,VALUE...]` words, axis -> float64 [M], the last fastest.

    Raises:
        TableError: a word is of another form, names no axis or one twice, or makes too many.
    """
    levels: dict[str, list[float]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        axis = AXES.get(name.strip())
        if not equals or axis is None:
            raise TableError(
                f"{word!r} is no point; write NAME=VALUE[,VALUE...] with a NAME of "
                f"{', '.join(AXES)}."
            )
        if axis in levels:
            raise TableError(f"{word!r} gives {axis} twice; put its values in one comma list.")
        levels[axis] = counts(values, name)
    n_points = math.prod(len(values) for values in levels.values())
    if n_points > _MOST_POINTS:
        raise TableError(
            f"these lists make {n_points} points, more than {_MOST_POINTS}; ask for fewer."
        )
    columns = np.array(list(product(*levels.values())), dtype=np.float64).T
    return dict(zip(levels, columns, strict=True))
