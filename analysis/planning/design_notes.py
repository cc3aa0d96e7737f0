"""What is said beside a design: candidates left out or trained already, and the sweep's recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.forms import Points
from analysis.records.columns import SAME_BUDGET, budgets, numbers
from scaling.budget import power_of_two_near

RECIPE: Mapping[str, float | str | None] = {
    "dead_treatment": "auxk",
    **{"dead_after_tokens": 10_000_000, "k_aux": None, "decay_fraction": 0.2, "batch_tokens": 256},
}
"""What a run of conf/ trains with, as a record names it; k_aux None: from d_model."""


def candidate_note(
    levels: Sequence[Sequence[float]],
    most_k_share: float,
    candidates: Points,
    there: pd.DataFrame | None,
) -> str:
    """How many of all n x k x tokens `levels` are candidates, and of these have a run in use."""
    n_cells, n_left = math.prod(map(len, levels)), len(candidates["n"])
    share = f"n / {1 / most_k_share:g}" if most_k_share < 1 else f"{most_k_share:g} n"
    note = f"candidates: {n_left} of {n_cells}; {n_cells - n_left} have k above {share}"
    note += " (--most-k-share) and are left out"
    if there is None:
        return note
    return f"{note}; {_n_trained(candidates, there)} of the {n_left} have been trained already"


def _n_trained(candidates: Points, there: pd.DataFrame) -> int:
    used = there.loc[there["excluded"] == ""]
    cells = np.column_stack([candidates[axis] for axis in ("n", "k", "tokens")])
    runs = np.column_stack([numbers(used, "n_latents"), numbers(used, "k"), budgets(used)])
    same = np.abs(runs[None, :, :] / cells[:, None, :] - 1.0) < (1e-9, 1e-9, SAME_BUDGET)
    return int(np.any(np.all(same, axis=2), axis=1).sum())


def recipe_notes(recipe: Mapping[str, Sequence[Any]], d_model: int | None) -> Iterator[str]:
    """Of a sweep written without --like: that it stands alone, and where its recipe differs from
    that of the runs fitted (column -> values)."""
    yield (
        "warning: without --like the sweep stands alone: it has a folder, the activations and the "
        "recipe of conf/, so its runs cannot be fitted together with the runs of this fit. Give "
        "--like SWEEP for more runs of the same kind."
    )
    defaults = {**RECIPE, "k_aux": None if d_model is None else power_of_two_near(d_model / 2)}
    different = [
        f"{column} {', '.join(map(str, values))} (conf/: {_shown(default)})"
        for column, default in defaults.items()
        if default is not None and (values := recipe.get(column)) and list(values) != [default]
    ]
    if different:
        yield f"warning: the runs fitted were trained with another recipe: {'; '.join(different)}."


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:_}"
