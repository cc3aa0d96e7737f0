"""Which laws a report fits to the runs of a sweep, and what stands in the way of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.convergence import FallingPairs, falling_pairs
from analysis.errors import TableError
from analysis.fitted import FittedLaw, fit_table, title_of
from analysis.laws import LatentsAndK, LatentsKTokens, LatentsKTokensTilted, Law
from analysis.table import RunTable


@dataclass(frozen=True)
class LawOutcome:
    """One law: fitted without the largest n and judged on it, and fitted on every run."""

    law: type[Law]
    title: str
    tested: FittedLaw | None  # None: see refusals
    final: FittedLaw | None
    refusals: dict[str, str]  # "without the largest n" or "all runs" -> why there is no fit

    @property
    def best_known(self) -> FittedLaw | None:
        """The fit to draw: the tested one, so that held-out points are predictions."""
        return self.tested or self.final


@dataclass(frozen=True)
class Study:
    table: RunTable
    budget: float  # the token budget that most values of n share
    fixed_budget: tuple[LawOutcome, ...]  # L(n,k | D), one per budget
    with_tokens: tuple[LawOutcome, ...]  # l_nkd and l_nkdu
    pairs: tuple[FallingPairs, ...]  # along n, k and tokens

    @property
    def outcomes(self) -> tuple[LawOutcome, ...]:
        return (*self.with_tokens, *self.fixed_budget)

    @property
    def headline(self) -> LawOutcome:
        """l_nkdu where it is fitted, else l_nkd, else L(n,k | D) at the common budget.

        The order is fixed beforehand (docs/laws.md), not chosen by whichever looks best.
        """
        choices = [*reversed(self.with_tokens), self.at_common_budget, *self.fixed_budget]
        return next((o for o in choices if o.best_known), choices[0])

    @property
    def at_common_budget(self) -> LawOutcome:
        title = title_of(LatentsAndK, self.table.at_budget(self.budget))
        return next(outcome for outcome in self.fixed_budget if outcome.title == title)


def study_runs(table: RunTable, *, n_bootstrap: int, seed: int) -> Study:
    """Fit every law that the runs allow. Nothing raises for too few runs: refusals are kept."""

    def outcome(law: type[Law], part: RunTable) -> LawOutcome:
        return _fit_both(law, part, table, n_bootstrap, seed)

    budgets = np.unique(table.points["tokens"])
    return Study(
        table=table,
        budget=_common_budget(table),
        fixed_budget=tuple(
            outcome(LatentsAndK, table.at_budget(budget)) for budget in budgets[::-1].tolist()
        ),
        with_tokens=(
            outcome(LatentsKTokens, table),
            outcome(LatentsKTokensTilted, table),
        ),
        pairs=tuple(falling_pairs(table, axis) for axis in ("n", "k", "tokens")),
    )


def _fit_both(
    law: type[Law], part: RunTable, context: RunTable, n_bootstrap: int, seed: int
) -> LawOutcome:
    largest = float(part.points["n"].max())
    held_out = part.points["n"] == largest
    plans = {f"runs with n < {largest:g}": held_out, "all runs": None}

    def fit(mask: NDArray[np.bool_] | None, rows: str) -> FittedLaw:
        options = {"n_bootstrap": n_bootstrap, "seed": seed}
        return fit_table(law, part, held_out=mask, context=context, rows=rows, **options)

    fits: dict[str, FittedLaw | None] = {}
    refusals: dict[str, str] = {}
    for rows, mask in plans.items():
        try:
            fits[rows] = fit(mask, rows)
        except TableError as refusal:
            fits[rows] = None
            refusals[rows] = str(refusal)
    tested, final = fits.values()
    return LawOutcome(law, title_of(law, part), tested, final, refusals)


def _common_budget(table: RunTable) -> float:
    """The budget with most values of n, then most runs, then most tokens."""
    n, tokens = table.points["n"], table.points["tokens"]

    def rank(budget: float) -> tuple[int, int, float]:
        here = tokens == budget
        return len(np.unique(n[here])), int(here.sum()), budget

    return max(np.unique(tokens).tolist(), key=rank)
