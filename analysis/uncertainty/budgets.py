"""How many tokens until a run is nearly at its limit: D*(n), with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from analysis.errors import TableError
from analysis.fitting.fit import Fit
from analysis.laws.forms import Array
from analysis.laws.tokens import TOKENS, log_tokens_gradient, log_tokens_to, token_terms
from analysis.uncertainty.bootstrap import Refits
from analysis.uncertainty.doubt import Doubt
from analysis.uncertainty.interval import Interval, student_interval, tails


class Fitted(Protocol):
    """What has a fit, its doubt and, maybe, refits: analysis.study.fitted.FittedLaw."""

    @property
    def fit(self) -> Fit: ...

    @property
    def refits(self) -> Refits | None: ...

    @property
    def doubt(self) -> Doubt: ...


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
    """D* of runs of n latents and k active ones (scalars or [N]), with intervals.

    Intervals are percentiles over the refits; without refits Student's t times the standard error
    of ln D* (delta method), from the fit's doubt or its clusters'. Where the interval of c itself
    holds 0 the upper end is infinite, and where c is not above 0 both ends say nothing: [0, inf].
    TableError for a law without tokens, or an excess that is not above 0.
    """
    fit = fitted.fit
    if not excess > 0:
        raise TableError(
            f"excess {excess:g} is not above 0: the limit itself takes endless tokens."
        )
    if TOKENS not in fit.law.form.monomials:
        raise TableError(
            f"law {fit.law.name} holds no tokens, so it says nothing of how many a run needs; fit "
            "one that does (l_nkd, l_nkdu, l_nkd_additive, l_nd)."
        )
    sizes_n, sizes_k = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, float)) for v in (n, k)))
    points = {"n": sizes_n, "k": sizes_k, "tokens": np.full(len(sizes_n), _one_token(fit))}
    features = fit.design(points).features_MP
    best = _tokens(fit, features, fit.centered, excess)
    if fitted.refits is None:
        ends = _by_delta_method(fit, features, excess, fitted.doubt, level)
    else:
        drawn = _tokens(fit, features, fitted.refits.coefficients, excess)
        # "nearest": between a finite and an infinite budget there is none to interpolate.
        ends = Interval(*np.quantile(drawn, tails(level), axis=0, method="nearest"))
    return TokenBudget(best, *ends, excess, level)


def _one_token(fit: Fit) -> float:
    """Tokens whose log is 0 in the fit's centered logs."""
    return float(np.exp(fit.center["tokens"]))


def _tokens(fit: Fit, features: Array, coefficients: Array, excess: float) -> Array:
    """Tokens [..., N] for coefficients [..., P] in the fit's centered logs."""
    centered = log_tokens_to(fit.law.form, features, coefficients, excess)
    with np.errstate(over="ignore"):  # beyond every float is endless
        return np.exp(centered + fit.center["tokens"])


def _by_delta_method(
    fit: Fit, features: Array, excess: float, doubt: Doubt, level: float
) -> Interval:
    slope = token_terms(fit.law.form).slope
    c = -float(fit.centered[slope])
    if c <= 0:
        return Interval(np.zeros(len(features)), np.full(len(features), np.inf))
    log_tokens = np.log(_tokens(fit, features, fit.centered, excess))
    gradient = log_tokens_gradient(fit.law.form, features, fit.centered, excess)
    with np.errstate(over="ignore"):
        low, high = student_interval(log_tokens, doubt.at(gradient), doubt.freedom, level)
    error = stdtrit(doubt.freedom, 0.5 + level / 2) * np.sqrt(doubt.covariance[slope, slope])
    return Interval(low, np.full_like(high, np.inf) if c <= error else high)
