"""What runs repeated with other seeds say of the noise, whatever the law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from analysis.laws.forms import Array
from analysis.records.table import RunTable

# Spreads of the cells that differ this clearly (p) cannot be pooled as if they were one.
_UNEQUAL = 0.01


@dataclass(frozen=True)
class PureError:
    """Spread of ln loss over runs of one cell, one entry per cell with at least two runs."""

    sums_of_squares: Array  # [C], about the mean of each cell
    freedoms: Array  # [C], runs minus one

    @property
    def n_cells(self) -> int:
        return len(self.freedoms)

    @property
    def variance(self) -> float:
        """Pooled over cells."""
        return float(self.sums_of_squares.sum() / self.freedoms.sum())

    @property
    def equal(self) -> bool:
        """False where Bartlett's test finds the cells' spreads unequal at 1%."""
        if len(self.freedoms) < 2:
            return True
        return _bartlett_p(self.sums_of_squares, self.freedoms) >= _UNEQUAL

    @property
    def degrees_of_freedom(self) -> float:
        """Of the pooled variance; Satterthwaite's (1946) fewer ones where spreads are unequal."""
        total = self.sums_of_squares.sum()
        if self.equal or total == 0.0:
            return float(self.freedoms.sum())
        return float(total**2 / np.sum(self.sums_of_squares**2 / self.freedoms))

    def json(self) -> dict[str, Any]:
        return {
            **{"variance": self.variance, "degrees_of_freedom": self.degrees_of_freedom},
            "n_cells": self.n_cells,
        }


def pure_error(table: RunTable) -> PureError | None:
    """Over runs that agree in n, k, tokens (and FLOPs or subject, where the table has them); None
    where no two do.

    Nothing but the seed may differ, so every axis of the table counts, also one the law lacks.
    """
    of_run = cell_ids(table)
    sizes = np.bincount(of_run)
    if (sizes == 1).all():
        return None
    means = np.bincount(of_run, table.log_loss) / sizes
    squares = np.bincount(of_run, (table.log_loss - means[of_run]) ** 2).astype(np.float64)
    return PureError(squares[sizes > 1], (sizes[sizes > 1] - 1).astype(np.float64))


def cell_ids(table: RunTable) -> NDArray[np.intp]:
    """Which cell each run is of, int [M]: runs of one cell agree in every axis."""
    axes = np.column_stack(list(table.points.values()))
    return np.unique(axes, axis=0, return_inverse=True)[1].ravel()


def _bartlett_p(sums_of_squares: Array, freedoms: Array) -> float:
    """Bartlett's (1937) test of equal variances, with his correction for small samples."""
    if (sums_of_squares == 0.0).any():
        return 0.0
    total, groups = freedoms.sum(), len(freedoms)
    pooled = np.log(sums_of_squares.sum() / total)
    statistic = total * pooled - freedoms @ np.log(sums_of_squares / freedoms)
    correction = 1.0 + (np.sum(1.0 / freedoms) - 1.0 / total) / (3.0 * (groups - 1))
    return float(chdtrc(groups - 1, statistic / correction))
