"""Which laws a report fits to the runs of a sweep, and what stands in the way of the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.errors import TableError
from analysis.judgement.convergence import FallingPairs, falling_pairs
from analysis.judgement.rivals import Rivals, compare_rivals, family
from analysis.judgement.verdicts import Verdicts, judge_fit
from analysis.laws.joint import (
    LatentsAndK,
    LatentsKPlusTokens,
    LatentsKTokens,
    LatentsKTokensTilted,
    Law,
)
from analysis.records.table import RunTable
from analysis.study.fitted import DEFAULTS, FitOptions, FittedLaw, title_of
from analysis.study.outliers import Outliers, find_outliers

HEADLINE_RULE = (
    "l_nkdu leads where it can be fitted, else l_nkd, else L(n,k | D) at the common budget. The "
    "order was fixed before any result, and the additive rival never leads: choosing the law by "
    "its held-out error would make that error no test."
)


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
    fixed_budget: tuple[LawOutcome, ...]  # L(n,k | D), one per budget, the largest first
    with_tokens: tuple[LawOutcome, ...]  # l_nkd, l_nkdu and their additive rival
    pairs: tuple[FallingPairs, ...]  # along n, k and tokens
    outliers: Outliers | None = None  # of the headline law's fit on all runs
    rivals: Rivals | None = None  # that law first, other forms and nested ones after
    judged: Verdicts | None = None  # the same fit

    @property
    def outcomes(self) -> tuple[LawOutcome, ...]:
        return (*self.with_tokens, *self.fixed_budget)

    @property
    def headline(self) -> LawOutcome:
        """The first of a fixed order that is fitted: see HEADLINE_RULE."""
        by_law = {outcome.law: outcome for outcome in self.with_tokens}
        leading = [by_law[law] for law in (LatentsKTokensTilted, LatentsKTokens)]
        choices = [*leading, self.at_common_budget, *self.fixed_budget]
        return next((o for o in choices if o.best_known), choices[0])

    @property
    def at_common_budget(self) -> LawOutcome:
        budgets = np.unique(self.table.points["tokens"])[::-1].tolist()
        return self.fixed_budget[budgets.index(self.budget)]


def study_runs(table: RunTable, options: FitOptions = DEFAULTS) -> Study:
    """Fit every law that the runs allow. Nothing raises for too few runs: refusals are kept."""

    def outcome(law: type[Law], part: RunTable) -> LawOutcome:
        return _fit_both(law, part, table, options)

    budgets = np.unique(table.points["tokens"])
    study = Study(
        table=table,
        budget=_common_budget(table),
        fixed_budget=tuple(
            outcome(LatentsAndK, table.at_budget(budget)) for budget in budgets[::-1].tolist()
        ),
        with_tokens=(
            outcome(LatentsKTokens, table),
            outcome(LatentsKTokensTilted, table),
            outcome(LatentsKPlusTokens, table),
        ),
        pairs=tuple(falling_pairs(table, axis) for axis in ("n", "k", "tokens")),
    )
    final = study.headline.final
    outliers = find_outliers(final, options)
    if final is None:
        return replace(study, outliers=outliers)
    rivals = compare_rivals(_forms(type(final.law)), final.fit.table, clusters=options.clusters)
    judged = judge_fit(final.fit, rivals.rows[0].held_out)
    return replace(study, outliers=outliers, rivals=rivals, judged=judged)


def _forms(law: type[Law]) -> tuple[type[Law], ...]:
    """A law, its rivals with tokens, and what is nested in it; each once."""
    others = (LatentsKTokens, LatentsKPlusTokens) if "tokens" in law.axes else ()
    return tuple(dict.fromkeys((law, *others, *family(law))))


def _fit_both(law: type[Law], part: RunTable, context: RunTable, options: FitOptions) -> LawOutcome:
    largest = float(part.points["n"].max())
    held_out = part.points["n"] == largest
    plans = {f"runs with n < {largest:g}": held_out, "all runs": None}

    def fit(mask: NDArray[np.bool_] | None, rows: str) -> FittedLaw:
        return options.fit(law, part, held_out=mask, context=context, rows=rows)

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
