"""What runs repeated with other seeds say of the noise, whatever the law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.records.table import RunTable


@dataclass(frozen=True)
class PureError:
    """Variance of ln loss between runs that differ in nothing but their seed."""

    variance: float
    degrees_of_freedom: int
    n_cells: int  # cells with more than one run


def pure_error(table: RunTable) -> PureError | None:
    """Pooled over all cells of equal axes (n, k, tokens, ...); None where no cell has two runs."""
    cells = cell_ids(table)
    counts = np.bincount(cells)
    means = np.bincount(cells, weights=table.log_loss) / counts
    freedom = int((counts - 1).sum())
    if freedom == 0:
        return None
    squares = float(np.sum((table.log_loss - means[cells]) ** 2))
    return PureError(squares / freedom, freedom, int((counts > 1).sum()))


def cell_ids(table: RunTable) -> np.ndarray:
    """Which cell each run is of, int [M]: runs of one cell agree in every axis."""
    axes = np.column_stack(list(table.points.values()))
    return np.unique(axes, axis=0, return_inverse=True)[1].ravel()
