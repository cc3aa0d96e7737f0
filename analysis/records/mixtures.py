"""Which runs may lie on one law: those that agree in what makes their losses comparable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import pandas as pd

from analysis.errors import TableError
from analysis.records.rejected import REJECTED

RECIPE = {
    "dead_treatment": "autoencoder.dead_treatment",
    "dead_after_tokens": "autoencoder.dead_after_tokens",
    "k_aux": "autoencoder.k_aux",
    "decay_fraction": "train.decay_fraction",
}
"""Column -> the key to train all runs with one value of; the others are another experiment."""

SAME_FOR_ALL = (
    *("numerics_version", "activations_id", "eval_hash", "normalization"),
    *("autoencoder", "d_model", "subject_model", "layer"),
    *RECIPE,
)
"""Runs that differ in one of these have losses that cannot be compared, or not on one law."""

_OF_AN_ARCHITECTURE = ("dead_treatment", "dead_after_tokens", "k_aux")
"""Where architectures may mix, each has its own of these."""
_YOUNG = ("dead_treatment",)
"""Older records say nothing of these, and nothing is held against them."""

LOSS_NAME = "loss_name"
"""Of long tables, which repeat each run for each of its losses."""
_UNKNOWN = "not recorded"
_WHY = {
    LOSS_NAME: "Raw and averaged weights differ by a few percent of the loss, more than runs "
    "scatter; keep the rows of one loss, and fit them apart."
}


def allowed(allow: str | Iterable[str]) -> frozenset[str]:
    """The words of `allow`: columns that may mix, and "rejected".

    Raises:
        TableError: one of them names nothing that is ever refused.
    """
    names = frozenset([allow] if isinstance(allow, str) else allow)
    unknown = sorted(names - {*SAME_FOR_ALL, LOSS_NAME, REJECTED})
    if unknown:
        raise TableError(
            f"allow names {unknown[0]}, which nothing refuses; it takes {REJECTED} and the columns "
            f"{', '.join((*SAME_FOR_ALL, LOSS_NAME))}."
        )
    return names


def refuse_mixtures(
    usable: pd.DataFrame,
    allow: Collection[str] = (),
    *,
    source: str = "",
    columns: Collection[str] = SAME_FOR_ALL,
) -> None:
    """TableError where runs differ in one of `columns` that `allow` does not name.

    Where `allow` has "autoencoder", what belongs to an architecture must agree within each.
    """
    for name in columns:
        if name in usable and name not in allow:
            for kind in _kinds(usable, name, allow):
                _refuse_mixture(kind, name, source)


def _kinds(usable: pd.DataFrame, name: str, allow: Collection[str]) -> list[pd.DataFrame]:
    """The runs among which `name` must agree: all, or those of each architecture."""
    if name not in _OF_AN_ARCHITECTURE or not {"autoencoder"} & {*allow} & {*usable}:
        return [usable]
    return [kind for _, kind in usable.groupby("autoencoder", dropna=False)]


def _refuse_mixture(usable: pd.DataFrame, name: str, source: str) -> None:
    values = map(_value_text, usable[name])
    known = (value for value in values if name not in _YOUNG or value != _UNKNOWN)
    counts = Counter(known).most_common()
    if len(counts) < 2:
        return
    found = ", ".join(f"{value} ({count} runs)" for value, count in counts)
    where = f"{source}: " if source else ""
    key = RECIPE.get(name)
    again = f"train all runs with one {key}, or " if key else ""
    why = _WHY.get(
        name,
        f"Their losses do not lie on one law; {again}keep each kind in a sweep folder or a table "
        "of its own and analyze them apart.",
    )
    raise TableError(
        f"{where}the runs mix {name}: {found}. {why} Where the mixture is the question, allow it "
        f'by name: allow=("{name}",), or --allow {name} on the command line.'
    )


def _value_text(value: Any) -> str:
    if value is None or value != value:  # NaN: pandas has put it where a record has none
        return _UNKNOWN
    # A column with gaps turns whole numbers into floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
