"""The best learning rate of each cell (n, k, D, B): a parabola in ln lr through its runs.

A rate below the best leaves the run unfinished and one above it makes it noisy, so that ln loss
against ln lr is a valley, near its bottom a parabola. A bottom at the end of the rates tried was
not seen from both sides: such a cell is flagged and says nothing of the rule.

Runs whose latents are mostly dead, which no law is fitted to, count here: that a rate kills latents
is what shows it to be too high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.laws.forms import Array
from analysis.records.columns import budgets, numbers
from analysis.records.exclusions import DEATH_MEASURES, MOST_DEAD
from analysis.records.load import load_runs
from analysis.records.mixtures import refuse_mixtures

LEAST_RATES = 3
# Beyond a factor 4 from the lowest loss the valley's sides are no parabola any more, and would move
# its bottom. A little above 4, so that rates of exactly that factor are within.
WIDEST = 4.2
SEED_SPREAD = 0.003
"""Spread of ln loss from run to run where none is given, on the large side: three seeds in each of
three cells of docs/study/records.csv show 0.04% to 0.18%."""
_OF_A_VALLEY = {"lr": "the peak learning rate", "batch_tokens": "tokens a step"}
_CELL = ["n_latents", "k", "tokens", "batch_tokens"]


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their rate alone (and their seed); rates [R] ascending."""

    n_latents: int
    k: int
    tokens: float
    batch_tokens: int
    lr: Array
    log_loss: Array  # [R], mean over seeds
    n_seeds: Array  # [R], runs behind each
    dead: Array  # [R], share of dead latents, the mean over seeds; NaN where not known

    @property
    def near(self) -> Cell:
        """Its runs near the lowest loss, where a parabola holds."""
        lowest = self.lr[np.argmin(self.log_loss)]
        keep = np.abs(np.log(self.lr / lowest)) < np.log(WIDEST)
        of_runs = ("lr", "log_loss", "n_seeds", "dead")
        return replace(self, **{name: getattr(self, name)[keep] for name in of_runs})

    @property
    def title(self) -> str:
        return (
            f"n={self.n_latents} k={self.k} D={self.tokens:,.0f} B={self.batch_tokens} "
            f"({len(self.lr)} rates)"
        )


@dataclass(frozen=True)
class BestRate:
    """Where a cell's parabola has its bottom. `problem` says why there is none to use, else ""."""

    cell: Cell
    lr: float  # NaN where the parabola has no bottom
    log_error: float  # standard error of ln lr, from the spread of the losses
    curvature: float  # of ln loss in ln lr: half the second derivative
    problem: str = ""

    @property
    def usable(self) -> bool:
        return not self.problem

    @property
    def cost_of_twice(self) -> float:
        """Relative rise of the loss at twice, or half, the best rate."""
        return float(np.expm1(self.curvature * np.log(2.0) ** 2))


def read_cells(sources: Sequence[str | Path], loss: str) -> list[Cell]:
    """The cells of what `load_runs` reads. Runs of several batch sizes may be among them.

    Raises:
        TableError: no run can be used, or runs cannot be compared with each other.
    """
    # Many rejected ones are to be expected of rates that are too high.
    frame = load_runs(list(sources), loss=loss, allow="rejected")
    frame["dead"] = np.minimum(*(numbers(frame, name) for name in DEATH_MEASURES))
    killed = (frame["dead"] > MOST_DEAD) & (frame["loss"] < 1)
    usable = frame.loc[(frame["excluded"] == "") | killed].drop_duplicates("run_id")
    refuse_mixtures(usable)
    _refuse_outcomes(usable)
    if usable.empty:
        reasons = sorted({str(reason) for reason in frame["excluded"]})
        raise TableError(
            f"none of the {len(frame)} runs can be used ({'; '.join(reasons)}); finish the sweep "
            "by calling it again, then repeat this."
        )
    _refuse_incomplete(usable)
    return cells_of(usable)


def _refuse_outcomes(usable: pd.DataFrame) -> None:
    """At one penalty a rate moves L0 too, and the lowest loss is that of the largest L0."""
    without = np.isnan(numbers(usable, "k")).sum()
    if without:
        raise TableError(
            f"{without} of {len(usable)} runs have no k: their sparsity is an outcome, and at one "
            "penalty a rate changes their L0 as well as their loss. Compare rates at equal L0: "
            "python -m analysis.equal_l0 RUNS --l0 32 --by lr."
        )


def _refuse_incomplete(usable: pd.DataFrame) -> None:
    """A cell is known by its batch, and a valley drawn over rates; a table made by hand may lack
    them."""
    for name, what in _OF_A_VALLEY.items():
        values = numbers(usable, name)
        wrong = ~(values >= 1) if name == "batch_tokens" else ~(values > 0)
        if not wrong.any():
            continue
        first = usable.iloc[int(np.argmax(wrong))]
        found = f"no usable {name} (it is {first[name]})" if name in first else f"no column {name}"
        raise TableError(
            f"{found}, {what}, for {wrong.sum()} of {len(usable)} runs; the first is "
            f"{first['run_id']}. Calibration needs one above 0 for each run: add it to the table, "
            "or leave these runs out."
        )


def cells_of(usable: pd.DataFrame) -> list[Cell]:
    """The cells of usable rows of `load_runs` with their share `dead`, by n, k, D and B."""
    rows = usable.assign(tokens=budgets(usable), log_loss=np.log(usable["loss"].astype(float)))
    return [_cell(key, cell) for key, cell in rows.groupby(_CELL)]


def _cell(key: Any, rows: pd.DataFrame) -> Cell:
    n, k, tokens, batch = key
    # A rate is a product of powers: equal ones may differ in their last digits.
    rates = np.array([float(f"{lr:.9g}") for lr in rows["lr"]])
    losses = rows["log_loss"].to_numpy(dtype=np.float64)
    lr, place, counts = np.unique(rates, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=losses) / counts
    dead = np.bincount(place, weights=rows["dead"].to_numpy(dtype=np.float64)) / counts
    point = (int(n), int(k), float(tokens), int(batch))
    return Cell(*point, lr, means, counts.astype(np.float64), dead)


def best_rate(cell: Cell, spread: float = SEED_SPREAD) -> BestRate:
    """The bottom of the parabola in ln lr; `spread` is the sd of ln loss from run to run."""
    if len(cell.lr) < LEAST_RATES:
        few = f"{len(cell.lr)} rates; a parabola needs {LEAST_RATES}"
        return BestRate(cell, np.nan, np.nan, np.nan, few)
    lowest, near = int(np.argmin(cell.log_loss)), cell.near
    if len(near.lr) < LEAST_RATES:
        apart = f"fewer than {LEAST_RATES} rates within a factor 4 of {cell.lr[lowest]:.3g}"
        return BestRate(cell, np.nan, np.nan, np.nan, apart)
    center = np.log(cell.lr[lowest])
    x, y = np.log(near.lr) - center, near.log_loss
    weights = np.sqrt(near.n_seeds)
    design = np.stack([np.ones_like(x), x, x**2], axis=1) * weights[:, None]
    (_, slope, curvature), *_ = np.linalg.lstsq(design, y * weights)
    if curvature <= 0:
        return BestRate(cell, np.nan, np.nan, curvature, "ln loss is no valley in ln lr")
    bottom = -slope / (2 * curvature)
    gradient = np.array([0.0, -1.0 / (2 * curvature), slope / (2 * curvature**2)])
    covariance = spread**2 * np.linalg.inv(design.T @ design)
    error = float(np.sqrt(gradient @ covariance @ gradient))
    problem = _edge(cell, lowest, float(bottom), float(x.min()), float(x.max()))
    return BestRate(cell, float(np.exp(center + bottom)), error, float(curvature), problem)


def _edge(cell: Cell, lowest: int, bottom: float, least: float, most: float) -> str:
    """Why the bottom was not seen from both sides; "" where it was."""
    if lowest in (0, len(cell.lr) - 1):
        side, step = ("lowest", "lower") if lowest == 0 else ("highest", "higher")
        return f"edge: the best of {len(cell.lr)} rates is the {side}; train {step} ones too"
    if not least < bottom < most:
        return "edge: the parabola's bottom lies outside the rates tried"
    return ""
