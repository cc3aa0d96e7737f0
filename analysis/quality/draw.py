"""How far a trend hangs on what was drawn to measure it: other documents, tasks, tokens or vectors.

A slope is a sum over runs, sum_r w_r y_r. All runs are measured on the same U units, and unit u
moves the number of run r by m_ru (scaling/runs/draws.py), so it moves the slope by

    s_u = sum_r w_r m_ru            m_ru / y_r where changes are of ln y

and the slope has the standard error sqrt(U / (U - 1) sum_u s_u^2). What a unit does to all runs
alike cancels; that one unit's trend is not another's does not. Where each run has units of its own
(latents), the scatter of seeds holds them already.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import stdtrit

from analysis.quality.values import Cell, Values
from analysis.uncertainty.seeds import UPPER, Bounds


def of_draw(values: Values, slope: float, weights: Mapping[Cell, float]) -> Bounds | None:
    """The 95% interval of a slope over other draws, by Student's t; None where the records do not
    say what each of two units or more does. `weights` are those of the means of cells."""
    moved_RU = values.beside.draws_RU
    if moved_RU is None:
        return None
    # Units without a part in any number, such as documents without a kept token, say nothing.
    runs, n_units = values.runs, int(moved_RU.any(axis=0).sum())
    if n_units < 2:
        return None
    if values.relative:
        moved_RU = moved_RU / runs["value"].to_numpy(np.float64)[:, None]
    cells = [Cell(*key) for key in zip(runs["n"], runs["k"], strict=True)]
    weights_R = np.array([weights.get(cell, 0.0) / len(values.of[cell]) for cell in cells])
    moved_U = weights_R @ moved_RU
    error = np.sqrt(float(moved_U @ moved_U) * n_units / (n_units - 1))
    half = float(stdtrit(n_units - 1, UPPER) * error)
    return Bounds(slope - half, slope + half)
