"""What token ladders say: are runs of one budget converged, and does loss fall as it should?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis.counts import short_count
from analysis.laws.forms import Array
from analysis.records.table import RunTable

# A cell (n, k) counts as converged at a budget where twice the tokens buy at most this much of
# the loss: about three times the spread over seeds of small runs.
SETTLED_FALL = 0.01


@dataclass(frozen=True)
class FallsAtBudget:
    """How loss falls per doubling of tokens around a budget, over cells (n, k)."""

    budget: str  # in words, such as "500k tokens"
    n_cells: int
    falls: Array  # relative fall per doubling, for the cells with another budget beside this one

    @property
    def n_unsettled(self) -> int:
        return int((self.falls > SETTLED_FALL).sum())

    @property
    def converged(self) -> bool:
        """Every cell has a ladder, and in each the last doubling bought at most SETTLED_FALL."""
        return len(self.falls) == self.n_cells and self.n_unsettled == 0

    @property
    def message(self) -> str:
        if not len(self.falls):
            return (
                f"all runs are at {self.budget} and no cell has a second budget, so nothing here "
                "shows that more tokens would not lower the loss: the fit is of runs at this "
                "budget, not of converged ones."
            )
        unseen = self.n_cells - len(self.falls)
        return (
            f"at {self.budget}, loss falls by more than {SETTLED_FALL:.0%} per doubling of tokens "
            f"in {self.n_unsettled} of the {len(self.falls)} cells (n, k) that have a second "
            f"budget (by up to {self.falls.max():.1%}; {unseen} more have none to compare "
            "with): the fit is of runs at this budget, and its floor and exponents hold "
            "under-training too."
        )


def ladders_at(budget: float, table: RunTable) -> FallsAtBudget:
    """Judge a budget from all runs: by the next larger budget of a cell, else the next smaller."""
    sizes = np.unique(table.points["n"]).tolist()
    return _ladders(dict.fromkeys(sizes, budget), table, f"{short_count(budget)} tokens")


def ladders_along(runs: RunTable, table: RunTable) -> FallsAtBudget:
    """The same where each n of `runs` has a budget of its own, judged from all runs of `table`."""
    budgets = dict(zip(runs.points["n"].tolist(), runs.points["tokens"].tolist(), strict=True))
    ends = " to ".join(short_count(end(budgets.values())) for end in (min, max))
    return _ladders(budgets, table, f"D*(n), {ends} tokens")


def _ladders(budget_of: Mapping[float, float], table: RunTable, words: str) -> FallsAtBudget:
    """`budget_of`: n -> tokens; cells of another n are not looked at."""
    falls, n_cells = [], 0
    for _, cell in mean_by(table, ["n", "k", "tokens"]).groupby(["n", "k"]):
        losses = dict(zip(cell["tokens"], cell["log_loss"], strict=True))
        budget = budget_of.get(cell["n"].iloc[0])
        if budget is None or budget not in losses:
            continue
        n_cells += 1
        larger = [tokens for tokens in losses if tokens > budget]
        smaller = [tokens for tokens in losses if tokens < budget]
        if larger or smaller:
            other = min(larger) if larger else max(smaller)
            falls.append(fall_per_doubling(budget, other, losses[budget] - losses[other]))
    return FallsAtBudget(words, n_cells, np.array(falls))


def fall_per_doubling(budget: float, other: float, log_ratio: float) -> float:
    """Relative fall of the loss per doubling, from ln(loss at budget / loss at other)."""
    return 1.0 - float(np.exp(-log_ratio / np.log2(other / budget)))


@dataclass(frozen=True)
class FallingPairs:
    """Adjacent levels of one axis at equal other coordinates, and in how many the loss falls."""

    axis: str
    n_falling: int
    n_pairs: int
    rising: tuple[str, ...] = ()  # the other pairs, in words

    @property
    def share(self) -> float | None:
        return self.n_falling / self.n_pairs if self.n_pairs else None


def falling_pairs(table: RunTable, axis: str) -> FallingPairs:
    """Compare each run with the next larger level of `axis`; seeds are averaged first."""
    axes = [a for a in ("n", "k", "tokens") if a in table.points]
    means = mean_by(table, axes)
    others = [a for a in axes if a != axis]
    rising: list[str] = []
    n_pairs = 0
    for _, group in means.groupby(others):
        rows = group.sort_values(axis).to_dict("records")
        n_pairs += len(rows) - 1
        rising += [
            _rise(axis, others, low, high)
            for low, high in pairwise(rows)
            if high["log_loss"] >= low["log_loss"]
        ]
    return FallingPairs(axis, n_pairs - len(rising), n_pairs, tuple(rising))


def _rise(
    axis: str, others: Sequence[str], low: Mapping[Hashable, Any], high: Mapping[Hashable, Any]
) -> str:
    """For example "n 2048 to 4096 at k = 4, tokens = 250k: +0.52%"."""
    ends = " to ".join(
        short_count(row[axis]) if axis == "tokens" else f"{row[axis]:g}" for row in (low, high)
    )
    fixed = ", ".join(
        f"{name} = {short_count(low[name]) if name == 'tokens' else format(low[name], 'g')}"
        for name in others
    )
    return f"{axis} {ends} at {fixed}: {np.expm1(high['log_loss'] - low['log_loss']):+.2%}"


def mean_by(table: RunTable, axes: Sequence[str]) -> pd.DataFrame:
    """Mean log_loss over the runs of each point, ascending in the axes."""
    frame = pd.DataFrame({**table.points, "log_loss": table.log_loss})
    return pd.DataFrame(frame.groupby(list(axes), as_index=False)["log_loss"].mean())
