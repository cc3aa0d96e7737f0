"""Columns of loaded runs as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.forms import Array

LOSSES = ("normalized_mse", "normalized_mse_ema")
"""The result fields that are held-out losses."""
DEFAULT_LOSS = LOSSES[0]
SAME_BUDGET = 0.01
"""Budgets asked for are trained in whole batches: this near, relatively, two are one budget."""


def numbers(frame: pd.DataFrame, column: str) -> Array:
    """Column as float64 [M]; NaN where it is absent, null or no number."""
    if column not in frame:
        return np.full(len(frame), np.nan)
    return np.array([float(v) if is_number(v) else np.nan for v in frame[column]])


def budgets(usable: pd.DataFrame) -> Array:
    """The token budget that names each run, [M]: what was asked for, where that was trained.

    So runs of several batch sizes share one.
    """
    trained, asked = numbers(usable, "tokens"), numbers(usable, "tokens_requested")
    return np.where(np.abs(asked / trained - 1.0) < SAME_BUDGET, asked, trained)


def is_number(value: Any) -> bool:
    # Compared, not converted: an integer may be too large for a float.
    return isinstance(value, int | float) and -1e300 < value < 1e300
