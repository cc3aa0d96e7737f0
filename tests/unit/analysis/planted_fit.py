"""Fits of planted tables, stored as a file would hold them. Tests only."""

from __future__ import annotations

from typing import Any

import numpy as np
from fabricate import PLANTED, Cell, demo_cells, losses_of, points_of

from analysis.laws.law import Law
from analysis.planning.stored import StoredLaw
from analysis.records.table import RunTable
from analysis.study.fitted import FittedLaw, fit_table

D_MODEL = 576


def table_of(law: Law, cells: list[Cell], noise: float = 0.01, seed: int = 0) -> RunTable:
    loss = losses_of(law, cells, noise, seed)
    runs = tuple(f"run {i}" for i in range(len(cells)))
    return RunTable(points_of(cells), loss, runs, "normalized_mse", (0,) * len(cells))


def planted_fit(
    law: Law = PLANTED, cells: list[Cell] | None = None, noise: float = 0.01, **options: Any
) -> FittedLaw:
    """The law fitted to its own noisy losses, without a bootstrap unless asked."""
    table = table_of(law, cells or demo_cells(), noise)
    return fit_table(type(law), table, **{"n_bootstrap": 0, **options})


def stored_as(law: Law, relative_doubt: float = 0.01, **changes: Any) -> StoredLaw:
    """A law as planted, with an independent doubt of its coefficients."""
    inverse = np.linalg.inv(law.coefficient_jacobian())
    doubt = relative_doubt**2 * np.diag(np.abs(law.coefficients()) + 0.1)
    values: dict[str, Any] = {
        **{"law": law, "title": law.title, "rows": "all runs", "loss": "normalized_mse"},
        **{"n_runs": 40, "covariance": inverse @ doubt @ inverse.T, "variance": 1e-4},
        **{"degrees_of_freedom": 30, "d_model": D_MODEL, "warnings": {}},
        "ranges": {"n": (256.0, 4096.0), "k": (4.0, 64.0), "tokens": (125e3, 1e6)},
    }
    return StoredLaw(**{**values, **changes})
