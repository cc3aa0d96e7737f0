"""How many tokens until a run is nearly at its limit: D*(n), with intervals from the refits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from analysis.errors import TableError
from analysis.fitting.fit import Fit
from analysis.laws.forms import Array, Form, Points
from analysis.uncertainty.bootstrap import Refits

_REDRAWS = 4000  # of the coefficients, where there are no refits
_ON_TOKENS = ("tokens",)


class Fitted(Protocol):
    """What has a fit and, maybe, refits: analysis.study.fitted.FittedLaw."""

    @property
    def fit(self) -> Fit: ...

    @property
    def refits(self) -> Refits | None: ...


@dataclass(frozen=True)
class TokenBudget:
    """Tokens at which the loss is (1 + excess) times its limit of endless training, [N] each.

    Infinite where more tokens do not lower the loss (c <= 0).
    """

    tokens: Array
    low: Array
    high: Array
    excess: float
    level: float


def tokens_to_reach(
    fitted: Fitted, n: ArrayLike, k: ArrayLike, excess: float, level: float = 0.95
) -> TokenBudget:
    """D* of runs of n latents and k active ones (scalars or [N]), with percentile intervals.

    Intervals are over the refits, or over draws from the fit's covariance where there are none.
    TableError for a law without tokens, or an excess that is not above 0.
    """
    fit = fitted.fit
    if not excess > 0:
        raise TableError(
            f"excess {excess:g} is not above 0: the limit itself takes endless tokens."
        )
    if _ON_TOKENS not in fit.law.form.monomials:
        raise TableError(
            f"law {fit.law.name} holds no tokens, so it says nothing of how many a run needs; fit "
            "one that does (l_nkd, l_nkdu, l_nkd_additive, l_nd)."
        )
    sizes_n, sizes_k = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, float)) for v in (n, k)))
    points = {"n": sizes_n, "k": sizes_k, "tokens": np.ones(len(sizes_n))}
    best = _tokens(fit, points, fit.centered[None], excess)[0]
    drawn = _tokens(fit, points, _coefficients(fitted), excess)
    tails = [0.5 - level / 2, 0.5 + level / 2]
    # "nearest": between a finite and an infinite budget there is none to interpolate.
    low, high = np.quantile(drawn, tails, axis=0, method="nearest")
    return TokenBudget(best, low, high, excess, level)


def _coefficients(fitted: Fitted) -> Array:
    if fitted.refits is not None:
        return fitted.refits.coefficients
    fit = fitted.fit
    rng = np.random.default_rng(0)
    return rng.multivariate_normal(fit.centered, fit.centered_covariance, size=_REDRAWS)


def _tokens(fit: Fit, points: Points, coefficients: Array, excess: float) -> Array:
    """Tokens [B, N] at which the token term is `excess` times the rest of its factor.

    That rest is 1 in [1 + (...)^c], and the limit itself in L + exp(tau) n^b D^-c: either way the
    loss is then (1 + excess) times its limit.
    """
    design = fit.design(points)  # at one token: what the slope in ln D multiplies is then known
    slope = fit.law.form.monomials.index(_ON_TOKENS)
    factor, place = _token_term(fit.law.form)
    slices = design.columns[factor]
    logs = [coefficients[:, c] @ design.features_MP[:, c].T for c in slices]
    tail = logs.pop(place)
    rest = np.logaddexp.reduce(np.array(logs))
    c = -coefficients[:, slope : slope + 1]
    with np.errstate(all="ignore"):  # c -> 0: no number of tokens is enough
        return np.where(c > 0, np.exp((tail - rest - np.log(excess)) / c), np.inf)


def _token_term(form: Form) -> tuple[int, int]:
    """Which factor, and which of its terms, holds the tokens."""
    return next(
        (i, j)
        for i, terms in enumerate(form.factors)
        for j, term in enumerate(terms)
        if _ON_TOKENS in term
    )
