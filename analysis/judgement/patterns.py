"""Do residuals change sign at random along n, k and tokens, or do they run? And their map.

The number of sign changes between neighbors is compared with that of fits to noise alone, drawn
through the fit's own Jacobian: a fit of many parameters pushes neighbors apart, and the tables of
the runs test (Wald and Wolfowitz 1940) know nothing of that. Seeds of a point are averaged first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.counts import short_count
from analysis.fitting.checks import LEAST_LEVELS
from analysis.fitting.fit import Fit
from analysis.judgement.significance import is_found
from analysis.laws.forms import Array

_N_DRAWS = 4000
_SEED = 0
_LEAST_PAIRS = 6  # fewer cannot make one percent of sign patterns
_ROUNDING = 1e-9  # residuals of ln loss whose signs mean nothing
AXES = ("n", "k", "tokens")
_CELL = (*AXES, "subject")  # what runs must share to be seeds of one cell


@dataclass(frozen=True)
class SignRuns:
    """Neighbors along one axis, at equal others: how many residuals keep their sign."""

    axis: str
    n_pairs: int
    n_same: int
    expected: float  # of pairs with the same sign, where only noise is left
    p: float | None  # share of noise fits that keep their sign as often; None: not judged
    ends: tuple[float, float]  # mean residual of ln loss at the lowest and the highest level

    @property
    def found(self) -> bool:
        return is_found(self.p)

    @property
    def message(self) -> str:
        if self.p is None:
            return (
                f"Whether residuals keep their sign along {self.axis} cannot be judged: there are "
                f"{self.n_pairs} pairs of neighbors ({_LEAST_PAIRS} needed), or the residuals are "
                "rounding errors."
            )
        numbers = (
            f"{self.n_same} of {self.n_pairs} pairs of neighbors have residuals of one sign, "
            f"{self.expected:.0f} expected by chance, p = {self.p:.2g}; mean residual "
            f"{self.ends[0]:+.2%} at the lowest {self.axis}, {self.ends[1]:+.2%} at the highest"
        )
        if self.found:
            other = "n" if self.axis != "n" else "k"
            return (
                f"Along {self.axis} the law misses in the same direction at one size after another "
                f"({numbers}): its shape in {self.axis} is wrong, or runs of one {other} share an "
                "error."
            )
        return f"Along {self.axis} the law misses in both directions, as by chance ({numbers})."

    def json(self) -> dict[str, Any]:
        return {
            **{"axis": self.axis, "found": self.found, "message": self.message},
            **{"n_pairs": self.n_pairs, "n_same_sign": self.n_same},
            **{"expected": self.expected, "p": self.p, "residual_log_at_ends": self.ends},
        }


@dataclass(frozen=True)
class ResidualMap:
    """Mean residual of ln loss over n (rows) and k (columns) at one budget (and subject model);
    NaN: no run."""

    budget: float | None  # None: the table has no tokens
    n: Array
    k: Array
    values: Array  # [N, K]
    subject: float | None = None  # parameters of the subject model; None: the table has none

    @property
    def title(self) -> str:
        sizes = {"D": self.budget, "S": self.subject}
        named = [f"{name} = {short_count(v)}" for name, v in sizes.items() if v is not None]
        return ", ".join(named) or "all runs"

    def json(self) -> dict[str, Any]:
        values = [[float(v) if np.isfinite(v) else None for v in row] for row in self.values]
        axes = {"n": self.n.tolist(), "k": self.k.tolist()}
        return {"tokens": self.budget, "subject": self.subject, **axes, "residual_log": values}


def sign_runs(fit: Fit) -> tuple[SignRuns, ...]:
    """Judge each axis of the table that has at least three levels."""
    points = pd.DataFrame(
        {axis: fit.table.points[axis] for axis in _CELL if axis in fit.table.points}
    )
    cells = points.drop_duplicates().reset_index(drop=True)
    average = _averaging(points, cells)
    observed = average @ fit.residuals
    noise = average @ _noise_residuals(fit)
    return tuple(
        _judge(axis, cells, observed, noise)
        for axis in AXES
        if len(np.unique(fit.table.points.get(axis, np.zeros(0)))) >= LEAST_LEVELS
    )


def residual_maps(fit: Fit) -> tuple[ResidualMap, ...]:
    """One map per token budget and subject model, the smallest first; rows are n ascending,
    columns k ascending."""
    frame = pd.DataFrame({**fit.table.points, "residual": fit.residuals})
    n, k = (np.unique(fit.table.points[axis]) for axis in ("n", "k"))
    split = [axis for axis in ("tokens", "subject") if axis in frame]
    groups = [part for _, part in frame.groupby(split)] if split else [frame]

    def level(part: pd.DataFrame, axis: str) -> float | None:
        return float(part[axis].iloc[0]) if axis in part else None

    return tuple(
        ResidualMap(level(part, "tokens"), n, k, _pivot(part, n, k), level(part, "subject"))
        for part in groups
    )


def _pivot(frame: pd.DataFrame, n: Array, k: Array) -> Array:
    table = frame.pivot_table(values="residual", index="n", columns="k", aggfunc="mean")
    return table.reindex(index=n, columns=k).to_numpy(np.float64)


def _averaging(points: pd.DataFrame, cells: pd.DataFrame) -> Array:
    """[C, M]: takes residuals of runs to the means of their cells."""
    keys = {tuple(cell): row for row, cell in enumerate(cells.itertuples(index=False))}
    rows = [keys[tuple(point)] for point in points.itertuples(index=False)]
    average = np.zeros((len(cells), len(points)))
    average[rows, np.arange(len(points))] = 1.0
    return average / average.sum(axis=1, keepdims=True)


def _noise_residuals(fit: Fit) -> Array:
    """Residuals [M, draws] that least squares would leave of independent normal errors."""
    draws = np.random.default_rng(_SEED).standard_normal((len(fit.residuals), _N_DRAWS))
    return draws - fit.tangent @ (fit.tangent.T @ draws)


def _judge(axis: str, cells: pd.DataFrame, observed: Array, noise: Array) -> SignRuns:
    pairs = _pairs(axis, cells)
    n_same = int(_same_sign(observed, pairs))
    by_noise = _same_sign(noise, pairs)
    share = (1.0 + np.sum(by_noise >= n_same)) / (1.0 + _N_DRAWS)
    judged = len(pairs) >= _LEAST_PAIRS and np.abs(observed).max() > _ROUNDING
    levels = cells[axis].to_numpy()
    low, high = (float(observed[levels == f(levels)].mean()) for f in (np.min, np.max))
    return SignRuns(
        axis=axis,
        n_pairs=len(pairs),
        n_same=n_same,
        expected=float(by_noise.mean()),
        p=float(share) if judged else None,
        ends=(low, high),
    )


def _pairs(axis: str, cells: pd.DataFrame) -> NDArray[np.int_]:
    """Rows of neighboring cells, [pairs, 2].

    Budgets that grow with n may never be equal at two n: there the steps of the ladders stand for
    them, counted from the longest.
    """
    pairs = [*_neighbors(axis, cells)]
    if len(pairs) < _LEAST_PAIRS and axis != "tokens" and "tokens" in cells:
        others = [name for name in cells if name != "tokens"]
        steps = cells.groupby(others)["tokens"].rank(ascending=False)
        pairs = [*_neighbors(axis, cells.assign(tokens=steps))]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def _neighbors(axis: str, cells: pd.DataFrame) -> Iterator[tuple[int, int]]:
    """Rows of cells next to each other along `axis`, all else equal."""
    others = [name for name in cells if name != axis]
    groups = [rows for _, rows in cells.groupby(others)] if others else [cells]
    for rows in groups:
        yield from pairwise(rows.sort_values(axis).index.to_list())


def _same_sign(residuals: Array, pairs: NDArray[np.int_]) -> NDArray[np.int_]:
    """Pairs of equal sign: residuals [C] or [C, draws] -> a number, or [draws]."""
    positive = residuals > 0
    return np.sum(positive[pairs[:, 0]] == positive[pairs[:, 1]], axis=0)
