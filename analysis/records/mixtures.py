"""Which runs may lie on one law: those that agree in what makes their losses comparable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import pandas as pd

from analysis.errors import TableError

_RECIPE = {
    "dead_after_tokens": "autoencoder.dead_after_tokens",
    "k_aux": "autoencoder.k_aux",
    "decay_fraction": "train.decay_fraction",
}
"""Column -> the key to train all runs with one value of; the others are another experiment."""

SAME_FOR_ALL = (
    *("numerics_version", "activations_id", "eval_hash", "normalization"),
    *("autoencoder", "d_model", "subject_model", "layer"),
    *_RECIPE,
)
"""Runs that differ in one of these have losses that cannot be compared, or not on one law."""


def refuse_mixtures(usable: pd.DataFrame, allow: Collection[str] = ()) -> None:
    """TableError where runs differ in one of `SAME_FOR_ALL` that `allow` does not name."""
    for name in SAME_FOR_ALL:
        if name in usable and name not in allow:
            _refuse_mixture(usable, name)


def _refuse_mixture(usable: pd.DataFrame, name: str) -> None:
    counts = Counter(map(_value_text, usable[name])).most_common()
    if len(counts) < 2:
        return
    found = ", ".join(f"{value} ({count} runs)" for value, count in counts)
    key = _RECIPE.get(name)
    again = f"train all runs with one {key}, or " if key else ""
    raise TableError(
        f"the runs mix {name}: {found}. Their losses do not lie on one law; {again}keep "
        "each kind in a sweep folder of its own and analyze them apart. Where the mixture is the "
        f'question, load_runs takes allow=("{name}",).'
    )


def _value_text(value: Any) -> str:
    if value is None or value != value:  # NaN: pandas has put it where a record has none
        return "not recorded"
    # A column with gaps turns whole numbers into floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
