"""What a fit may and may not be used for, in sentences a reader of the report needs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analysis.counts import short_count
from analysis.study.fitted import FittedLaw

_REACH = 2  # the step in n that the next sweep would commonly take


class Uses(NamedTuple):
    may: str
    may_not: str


def uses(fitted: FittedLaw) -> Uses:
    """From the law, the range of its runs and its warnings."""
    points = fitted.fit.table.points
    ranges = {axis: _range(points[axis]) for axis in ("n", "k")}
    if "tokens" in fitted.law.axes:
        return _with_tokens(fitted, ranges)
    return _at_one_budget(fitted, ranges)


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


def _at_one_budget(fitted: FittedLaw, ranges: dict[str, str]) -> Uses:
    tokens = fitted.fit.table.points.get("tokens")
    if tokens is None:
        return Uses(
            f"Interpolating over n {ranges['n']} and k {ranges['k']} for runs trained like these.",
            "Statements on converged autoencoders, unless these runs were trained to convergence.",
        )
    budget = short_count(float(tokens[0]))
    may = f"Comparing sizes n {ranges['n']} and sparsities k {ranges['k']} at exactly D={budget}."
    converged = (
        "Any other budget. Its floor and exponents are not those of converged runs: under-"
        "training is absorbed by them without showing in the residuals. Never as L(n,k)."
        if "not_converged" in fitted.warnings
        else "Budgets below this one; larger ones only as far as the runs are converged."
    )
    return Uses(may, converged)


def _range(values: np.ndarray) -> str:
    return f"{values.min():.0f} to {values.max():.0f}"
