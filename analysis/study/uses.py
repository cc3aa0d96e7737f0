"""What a fit may and may not be used for, in sentences a reader of the report needs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analysis.counts import short_count
from analysis.fitting.checks import one_budget
from analysis.study.fitted import FittedLaw

_REACH = 2  # the step in n that the next sweep would commonly take


class Uses(NamedTuple):
    may: str
    may_not: str


def uses(fitted: FittedLaw) -> Uses:
    """From the law, the range of its runs and its warnings."""
    points = fitted.fit.table.points
    ranges = {axis: _range(points[axis]) for axis in ("n", "k")}
    if fitted.law.response == "tokens":
        return _of_tokens(ranges)
    if "flops" in fitted.law.axes:
        return _of_compute(fitted)
    if "tokens" in fitted.law.axes:
        return _with_tokens(fitted, ranges)
    return _without_tokens(fitted, ranges)


def _of_tokens(ranges: dict[str, str]) -> Uses:
    return Uses(
        f"Choosing budgets for runs that end by the same rule, n {ranges['n']} at k {ranges['k']}.",
        "Tokens to another distance from the limit, of annealed runs, or at another k.",
    )


def _of_compute(fitted: FittedLaw) -> Uses:
    flops = fitted.fit.table.points["flops"]
    return Uses(
        f"The loss that {flops.min():.2g} to {flops.max():.2g} training FLOPs reach at their best "
        "n, in the convention of the column.",
        "The loss of a given n, or budgets beyond these: the runs that no cheaper one beats are "
        "few, and lie low by about the noise of a run.",
    )


def _with_tokens(fitted: FittedLaw, ranges: dict[str, str]) -> Uses:
    points = fitted.fit.table.points
    low, high = (short_count(float(f(points["tokens"]))) for f in (np.min, np.max))
    beyond = f"{_REACH * points['n'].max():.0f}"
    may = (
        f"Predicting the loss of runs of this recipe between the cells that were trained (n "
        f"{ranges['n']}, k {ranges['k']}, D {low} to {high} tokens, and not every n at every D); "
        "comparing how much an added token and an added latent buy there."
    )
    limit = (
        "Reading its limit L(n,k) or its floor as measured: no run here is near the limit, so "
        "both rest on the form of the law. "
        if "limit_extrapolated" in fitted.warnings
        else ""
    )
    reach = (
        f"n beyond the trained ones: at n = {beyond} the rival forms of this page may differ by "
        "more than their intervals, and a law of short runs may even rise with n there. "
    )
    return Uses(may, limit + reach + "Other activations, recipes or normalizations; other D.")


def _without_tokens(fitted: FittedLaw, ranges: dict[str, str]) -> Uses:
    tokens = fitted.fit.table.points.get("tokens")
    if fitted.fit.table.shown_converged:
        return Uses(
            f"The loss of converged runs, n {ranges['n']} and k {ranges['k']}.",
            "Runs of fewer tokens. The limit of endless training, which lies lower still: to be "
            f"converged here is that {fitted.fit.table.shown_converged}.",
        )
    if tokens is None:
        return Uses(
            f"Interpolating over n {ranges['n']} and k {ranges['k']} for runs trained like these.",
            "Statements on converged autoencoders, unless these runs were trained to convergence.",
        )
    budget = one_budget(fitted.fit.table)
    at = "the budget that each n had here" if budget is None else f"exactly D={short_count(budget)}"
    may = f"Comparing sizes n {ranges['n']} and sparsities k {ranges['k']} at {at}."
    converged = (
        "Any other budget. Its floor and exponents are not those of converged runs: under-"
        "training is absorbed by them without showing in the residuals. Never as L(n,k)."
        if "not_converged" in fitted.warnings
        else "Budgets below these; larger ones only as far as the runs are converged."
    )
    return Uses(may, converged)


def _range(values: np.ndarray) -> str:
    return f"{values.min():.0f} to {values.max():.0f}"
