"""Which laws a report fits to the runs of a sweep, and what stands in the way of the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from analysis.counts import short_count
from analysis.fitting.checks import LEAST_LEVELS, grows_with_n
from analysis.judgement.convergence import FallingPairs, falling_pairs
from analysis.judgement.rivals import Rivals, compare_rivals, family
from analysis.judgement.settled import select_converged
from analysis.judgement.verdicts import Verdicts, judge_fit
from analysis.laws.joint import (
    LatentsAndK,
    LatentsKPlusTokens,
    LatentsKTokens,
    LatentsKTokensTilted,
)
from analysis.laws.law import Law
from analysis.laws.powers import OfCompute, OfLatents, OfLatentsAndTokens, TokensToConvergence
from analysis.records.table import RunTable, tokens_to_convergence
from analysis.study.fitted import DEFAULTS, FitOptions
from analysis.study.outcomes import LawOutcome, Trials
from analysis.study.outliers import Outliers, find_outliers

__all__ = ["HEADLINE_RULE", "LawOutcome", "Study", "study_runs"]

HEADLINE_RULE = (
    "l_nkdu leads where it can be fitted, else l_nkd, else (runs of one k) l_nd, else the law "
    "without tokens, L(n,k) or at one k L(n): of the runs shown converged where a stopping rule "
    "was to end them, else of those at the common budget, else at D*(n) where each n has a budget "
    "of its own. L(C) leads only where no other law can be fitted. Tokens that a stopping rule "
    "decides are no choice of the design, so such runs are given to no law with tokens. The order "
    "was fixed before any result, and the additive rival never leads: choosing the law by its "
    "held-out error would make that error no test."
)
_WITH_TOKENS = (LatentsKTokens, LatentsKTokensTilted, LatentsKPlusTokens)
_LEADING = (LatentsKTokensTilted, LatentsKTokens, OfLatentsAndTokens)


@dataclass(frozen=True)
class Study:
    table: RunTable
    budget: float | None  # that most n share; None: too few share any, or a rule ended the runs
    without_tokens: tuple[LawOutcome, ...]  # L(n,k), or L(n) at one k: the one to lead first
    with_tokens: tuple[LawOutcome, ...]  # l_nkd, l_nkdu, their additive rival; l_nd at one k
    others: tuple[LawOutcome, ...]  # at one k: L(C), or tokens to convergence
    pairs: tuple[FallingPairs, ...]  # along n, k and tokens
    outliers: Outliers | None = None  # of the headline law's fit on all runs
    rivals: Rivals | None = None  # that law first, other forms and nested ones after
    judged: Verdicts | None = None  # the same fit

    @property
    def outcomes(self) -> tuple[LawOutcome, ...]:
        return (*self.with_tokens, *self.without_tokens, *self.others)

    @property
    def headline(self) -> LawOutcome:
        """The first of a fixed order that is fitted: see HEADLINE_RULE."""
        by_law = {outcome.law: outcome for outcome in self.with_tokens}
        leading = [by_law[law] for law in _LEADING if law in by_law]
        of_loss = [outcome for outcome in self.others if outcome.law.response == "loss"]
        choices = [*leading, *self.without_tokens, *of_loss]
        return next((o for o in choices if o.best_known), choices[0])

    @property
    def budgets_in_words(self) -> str:
        """At which tokens the runs are that the law without tokens is fitted to."""
        if self.budget is not None:
            return f"at D = {short_count(self.budget)} tokens"
        if any(ended is not None for ended in self.table.stopped or ()):
            return "trained until a rule ended them"
        return f"at {'D*(n)' if grows_with_n(self.table) else 'several budgets of'} tokens"

    @property
    def plainest(self) -> LawOutcome:
        """The law without tokens that goes before others: at the common budget, or at D*(n)."""
        return self.without_tokens[0]


def study_runs(table: RunTable, options: FitOptions = DEFAULTS) -> Study:
    """Fit every law that the runs allow. Nothing raises for too few runs: refusals are kept."""
    trials, by_rule = Trials(table, options), any(s is not None for s in table.stopped or ())
    budget = None if by_rule else _common_budget(table)
    study = Study(
        table=table,
        budget=budget,
        without_tokens=tuple(_without_tokens(trials, budget, by_rule=by_rule)),
        with_tokens=() if by_rule else tuple(_with_tokens(trials)),
        others=tuple(_others(trials, by_rule=by_rule)),
        pairs=tuple(falling_pairs(table, axis) for axis in ("n", "k", "tokens")),
    )
    final = study.headline.final
    if final is None:
        return study
    outliers = find_outliers(final, options)
    rivals = compare_rivals(_forms(type(final.law)), final.fit.table, clusters=options.clusters)
    judged = judge_fit(final.fit, rivals.rows[0].held_out)
    return replace(study, outliers=outliers, rivals=rivals, judged=judged)


def _with_tokens(trials: Trials) -> Iterator[LawOutcome]:
    laws = (*_WITH_TOKENS, OfLatentsAndTokens) if _one_k(trials.runs) else _WITH_TOKENS
    yield from (trials.on(law, trials.runs) for law in laws)


def _without_tokens(trials: Trials, common: float | None, *, by_rule: bool) -> Iterator[LawOutcome]:
    """L(n,k) or L(n): of converged runs, at D*(n), and at each budget that several n share."""
    table = trials.runs
    law = OfLatents if _one_k(table) else LatentsAndK
    if by_rule:
        yield trials.on_chosen(law, lambda runs: select_converged(runs).table, "converged ")
    if common is not None:
        yield trials.on(law, table.at_budget(common))
    elif not by_rule:
        yield trials.on(law, table)
    for budget in np.unique(table.points["tokens"])[::-1].tolist():
        if budget != common and _n_sizes(table, budget) > 1:
            yield trials.on(law, table.at_budget(budget))


def _others(trials: Trials, *, by_rule: bool) -> Iterator[LawOutcome]:
    if not _one_k(trials.runs):
        return
    if by_rule:
        yield trials.on_chosen(TokensToConvergence, tokens_to_convergence, "converged ")
    elif len(np.unique(trials.runs.points["tokens"])) > 1:
        # At one budget FLOPs are n times a number, and L(C) is L(n) again.
        yield trials.on(OfCompute, trials.runs)


def _forms(law: type[Law]) -> tuple[type[Law], ...]:
    """A law, its rivals with tokens, and what is nested in it; each once."""
    others = (LatentsKTokens, LatentsKPlusTokens) if law in _WITH_TOKENS else ()
    return tuple(dict.fromkeys((law, *others, *family(law))))


def _one_k(table: RunTable) -> bool:
    return len(np.unique(table.points["k"])) == 1


def _n_sizes(table: RunTable, budget: float) -> int:
    return len(np.unique(table.at_budget(budget).points["n"]))


def _common_budget(table: RunTable) -> float | None:
    """The budget with most values of n, then most runs, then most tokens.

    None where it has too few n for any law and runs of other budgets have more to say.
    """
    n, tokens = table.points["n"], table.points["tokens"]
    budgets: list[float] = np.unique(tokens).tolist()

    def rank(budget: float) -> tuple[int, int, float]:
        here = tokens == budget
        return _n_sizes(table, budget), int(here.sum()), budget

    common = max(budgets, key=rank)
    enough = min(LEAST_LEVELS, len(np.unique(n)))
    return common if len(budgets) == 1 or _n_sizes(table, common) >= enough else None
