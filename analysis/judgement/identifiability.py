"""Can these runs determine this law? Levels and spans of n, k and D, their ties, conditioning.

A fit of a poor design runs through its points all the same. What is asked for here (n over a factor
2^8, k over 16, token ladders of several n over a factor 16) is what planted laws needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from analysis.counts import short_count
from analysis.fitting.checks import LEAST_LEVELS
from analysis.fitting.fit import Fit
from analysis.laws.forms import Array
from analysis.laws.law import Law
from analysis.records.table import RunTable

LEAST_SPANS = {"n": 2.0**8, "k": 16.0}
LEAST_LADDER = 16.0  # largest over smallest budget of one cell (n, k)
_LEAST_LADDER_SIZES = 3  # values of n that have ladders, for the exponent s
_MOST_TIED = 0.9  # share of the variance of ln k or ln D that the value of n gives away
MOST_CONDITION = 1e3  # of the Jacobian with columns scaled to one; the paper's points are at 36
_TWO_SIDED = 1.96


class Span(NamedTuple):
    """Levels of one axis."""

    axis: str
    n_levels: int
    low: float
    high: float

    @property
    def factor(self) -> float:
        return self.high / self.low


class Ladders(NamedTuple):
    """Cells (n, k) trained at several budgets."""

    n_cells: int  # of all
    n_ladders: int  # with at least two budgets
    n_sizes: int  # values of n among them
    n_sparsities: int  # values of k among them
    longest: int  # budgets in one cell
    factor: float  # largest over smallest budget within a cell, the most of any cell


@dataclass(frozen=True)
class Identifiability:
    """What the design allows. `findings` are code -> sentence; empty where all is well."""

    spans: tuple[Span, ...]
    ladders: Ladders | None  # None: the law or the table has no tokens
    condition: float | None  # None: not fitted
    unresolved: tuple[str, ...]  # parameters whose sign the fit does not tell (1.96 se)
    findings: dict[str, str]

    @property
    def message(self) -> str:
        return " ".join(self.sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The findings, then the parameters that may be zero; never empty."""
        said = (*self.findings.values(), *self._about_signs())
        return said or ("The design determines this law.",)

    def _about_signs(self) -> Iterator[str]:
        if self.unresolved:
            names = ", ".join(self.unresolved)
            yield (
                f"Zero lies within 1.96 standard errors of {names}: these runs do not tell "
                f"{'its sign' if len(self.unresolved) == 1 else 'their signs'}."
            )

    def json(self) -> dict[str, Any]:
        return {
            "message": self.message,
            "findings": self.findings,
            "spans": [{**span._asdict(), "factor": span.factor} for span in self.spans],
            "ladders": self.ladders._asdict() if self.ladders else None,
            "condition": self.condition if np.isfinite(self.condition or 0.0) else None,
            "unresolved": list(self.unresolved),
        }


def identifiability(law: type[Law], table: RunTable, fit: Fit | None = None) -> Identifiability:
    """Judge the runs of `table` for `law`; with a fit of them, its conditioning too."""
    spans = tuple(_span(axis, table.points[axis]) for axis in law.axes if axis in table.points)
    with_tokens = {"n", "k", "tokens"} <= {*table.points} and "tokens" in law.axes
    ladders = _ladders(table) if with_tokens else None
    findings = {**dict(_about_spans(spans)), **dict(_about_ties(law, table))}
    if ladders is not None:
        findings |= dict(_about_ladders(law, ladders))
    condition, unresolved = None, ()
    if fit is not None:
        condition, unresolved = condition_number(fit), _unresolved(fit)
        findings |= dict(about_condition(condition))
    return Identifiability(spans, ladders, condition, unresolved, findings)


def condition_number(fit: Fit) -> float:
    """Of the Jacobian in centered logs, columns scaled to one; infinite where it lost a rank."""
    if not fit.full_rank:
        return float("inf")
    return float(np.linalg.cond(fit.jacobian / np.linalg.norm(fit.jacobian, axis=0)))


def _span(axis: str, values: Array) -> Span:
    return Span(axis, len(np.unique(values)), float(values.min()), float(values.max()))


def _ladders(table: RunTable) -> Ladders:
    budgets: dict[tuple[float, float], set[float]] = {}
    columns = (table.points[axis].tolist() for axis in ("n", "k", "tokens"))
    for n, k, tokens in zip(*columns, strict=True):
        budgets.setdefault((n, k), set()).add(tokens)
    several = [cell for cell, found in budgets.items() if len(found) > 1]
    return Ladders(
        n_cells=len(budgets),
        n_ladders=len(several),
        n_sizes=len({n for n, _ in several}),
        n_sparsities=len({k for _, k in several}),
        longest=max(map(len, budgets.values())),
        factor=max(max(found) / min(found) for found in budgets.values()),
    )


def _about_spans(spans: tuple[Span, ...]) -> Iterator[tuple[str, str]]:
    for span in spans:
        if span.n_levels < LEAST_LEVELS:
            yield (
                f"few_levels_{span.axis}",
                f"{span.axis} has {span.n_levels} of the {LEAST_LEVELS} levels that a curve needs.",
            )
        least = LEAST_SPANS.get(span.axis, 1.0)
        if span.factor < least:
            yield (
                f"narrow_{span.axis}",
                f"{span.axis} spans a factor of {span.factor:.3g} ({span.low:.0f} to "
                f"{span.high:.0f}), less than {least:.0f}: a floor and an exponent trade off over "
                f"so short a range. Add runs at other {span.axis}.",
            )


def _about_ties(law: type[Law], table: RunTable) -> Iterator[tuple[str, str]]:
    for axis in (a for a in ("k", "tokens") if {a, "n"} <= {*law.axes} & {*table.points}):
        share = _given_away(table.points[axis], table.points["n"])
        if share > 1.0 - 1e-12 and axis == "tokens":
            yield (
                "tokens_tied_to_n",
                "every n has one token budget, D = D*(n): c and s cannot be told, and under-"
                "training passes for an effect of n. Add budgets of 1/64, 1/16 and 1/4 of D*(n).",
            )
        elif share > _MOST_TIED:
            yield (
                f"{axis}_tied_to_n",
                f"n gives away {share:.0%} of the variance of ln {axis}: the effects of the two "
                f"are told apart by few runs. Add runs of equal n with other {axis}.",
            )


def _given_away(values: Array, given: Array) -> float:
    """Share of the variance of ln values that lies between the levels of `given`, 0 to 1."""
    logs = np.log(values)
    total = float(np.sum((logs - logs.mean()) ** 2))
    parts = (logs[given == level] for level in np.unique(given))
    within = sum(float(np.sum((part - part.mean()) ** 2)) for part in parts)
    return 1.0 - within / total if total > 0 else 0.0


def _about_ladders(law: type[Law], ladders: Ladders) -> Iterator[tuple[str, str]]:
    if not ladders.n_ladders:
        yield (
            "no_ladders",
            "no cell (n, k) has a second token budget, so nothing shows what tokens alone buy.",
        )
        return
    if ladders.n_sizes < _LEAST_LADDER_SIZES:
        yield (
            "ladders_at_few_n",
            f"only {ladders.n_sizes} values of n have several budgets: how the needed tokens grow "
            "with n (s, or b) rests on the form. Add ladders at other n.",
        )
    if "u" in law.parameter_names and ladders.n_sparsities < 2:
        yield (
            "ladders_at_one_k",
            "all token ladders are at one k, so u cannot be told from the k of the limit. Add "
            "ladders at another k.",
        )
    if ladders.longest < LEAST_LEVELS:
        yield (
            "short_ladders",
            "no cell has three budgets, so the limit of endless training and the exponent c trade "
            "off freely. Add a third budget.",
        )
    elif ladders.factor < LEAST_LADDER:
        yield (
            "narrow_ladders",
            f"budgets of one cell span a factor of {short_count(ladders.factor)} at most, less "
            f"than {LEAST_LADDER:.0f}: c and the limit trade off. Add shorter or longer runs.",
        )


def about_condition(condition: float) -> Iterator[tuple[str, str]]:
    """What a condition number says against reading single parameters, as code and sentence."""
    if condition > MOST_CONDITION:
        yield (
            "ill_conditioned",
            f"parameters trade off almost freely (condition number {condition:.0f} after scaling): "
            "read predictions and intervals, not single parameters.",
        )


def _unresolved(fit: Fit) -> tuple[str, ...]:
    """Parameters that may have either sign; those that are above 0 by their form are not asked."""
    signed = {p: v for p, v in fit.law.parameters.items() if p not in fit.law.scales}
    if not fit.full_rank:
        return tuple(signed)
    errors = fit.standard_errors
    return tuple(name for name, value in signed.items() if abs(value) < _TWO_SIDED * errors[name])
