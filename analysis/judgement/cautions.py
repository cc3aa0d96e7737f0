"""What a reader of a fit must know before using it, each under a short code (docs/laws.md)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.fitting.checks import grows_with_n, one_budget
from analysis.fitting.fit import Fit
from analysis.judgement.convergence import ladders_along, ladders_at
from analysis.judgement.identifiability import about_condition, condition_number
from analysis.laws.forms import Array, Points
from analysis.records.table import RunTable
from analysis.uncertainty.bootstrap import Refits

_MOST_FLOOR_ERROR = 0.5  # standard error of the log of the floor at the middle of the data
_MOST_UNSETTLED = 0.02
_MOST_EXCESS = 0.05
_LEAST_AGREEING = 2

Caution = tuple[str, str]


def cautions(fit: Fit, refits: Refits | None, context: RunTable) -> dict[str, str]:
    """Warnings as code -> message; `context` holds all runs, also those of other budgets."""
    found = [*_about_budget(fit, context), *_about_optimum(fit), *_about_values(fit)]
    return dict([*found, *_about_refits(refits)])


def excess_over_limit(fit: Fit, points: Points) -> Array:
    """Predicted loss over its limit of endless training, minus one, [M]; zeros without tokens."""
    if "tokens" not in fit.law.axes:
        return np.zeros(len(points["n"]))
    endless = {**points, "tokens": np.full_like(points["tokens"], 1e30)}
    return np.exp(fit.log_predict(points) - fit.log_predict(endless)) - 1.0


def _about_budget(fit: Fit, context: RunTable) -> Iterator[Caution]:
    if "tokens" in fit.law.axes:
        excess = excess_over_limit(fit, _longest_runs(fit.table))
        if np.median(excess) > _MOST_EXCESS:
            yield (
                "limit_extrapolated",
                f"at the largest budget of each cell the fitted loss is still "
                f"{np.median(excess):.0%} (median; {excess.min():.0%} to {excess.max():.0%}) above "
                "its own limit: L(n,k) at endless training, and its floor, are extrapolations.",
            )
        return
    if "tokens" not in fit.law.constant_axes or fit.law.response != "loss":
        return
    if fit.table.shown_converged:
        return
    budget, tied = one_budget(fit.table), grows_with_n(fit.table)
    if budget is None and not tied:
        yield (
            "tokens_unknown",
            "the table has no tokens column, so convergence cannot be judged: the law is that of "
            "runs trained to convergence only if these runs were.",
        )
        return
    ladders = ladders_along(fit.table, context) if budget is None else ladders_at(budget, context)
    if not ladders.converged:
        yield "not_converged", ladders.message


def _longest_runs(table: RunTable) -> Points:
    points = table.points
    longest: dict[tuple[float, float], int] = {}
    for row, cell in enumerate(zip(points["n"], points["k"], strict=True)):
        if cell not in longest or points["tokens"][row] > points["tokens"][longest[cell]]:
            longest[cell] = row
    rows = list(longest.values())
    return {axis: values[rows] for axis, values in points.items()}


def _about_optimum(fit: Fit) -> Iterator[Caution]:
    agreeing = sum(start.is_best for start in fit.starts)
    if agreeing < min(_LEAST_AGREEING, len(fit.starts)):  # a law linear in its logs has one start
        yield (
            "starts_disagree",
            f"only {agreeing} of {len(fit.starts)} starts reached the lowest cost: another optimum "
            "may lie lower still.",
        )
    if not fit.full_rank:
        yield (
            "rank_deficient",
            "the data leave a combination of parameters free (no floor can be told, or levels are "
            "too few): parameters have no standard errors, and only predictions inside the data "
            "mean anything.",
        )
        return
    yield from about_condition(condition_number(fit))


def _factor(error: float) -> str:
    """Of a 95% interval's half width, for a standard error of a log."""
    half = 1.96 * error
    return f"{np.exp(half):.1f}" if half < np.log(1e6) else "of more than a million"


def _about_values(fit: Fit) -> Iterator[Caution]:
    floor = fit.law.floor_column
    if floor is not None and fit.full_rank:
        error = float(np.sqrt(fit.centered_covariance[floor, floor]))
        if error > _MOST_FLOOR_ERROR:
            yield (
                "floor_unidentified",
                f"the floor is known to a factor {_factor(error)} "
                "only: the data fit with nearly no floor as well.",
            )
    c = fit.law.parameters.get("c")
    if c is not None and c <= 0:
        yield (
            "wrong_sign",
            f"c = {c:.3g}: the fit says that more tokens do not lower the loss, so the other "
            "parameters of its token term mean nothing. Check the learning rates of the longer "
            "runs.",
        )


def _about_refits(refits: Refits | None) -> Iterator[Caution]:
    if refits is not None and refits.share_unsettled > _MOST_UNSETTLED:
        yield (
            "refits_unsettled",
            f"{refits.share_unsettled:.1%} of the {len(refits)} bootstrap refits ran into the step "
            "limit along a flat valley: the ends of the widest intervals are rough.",
        )
