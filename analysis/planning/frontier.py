"""The best n and D for a budget of FLOPs, and the n that a budget trains to near its limit.

k is given, never chosen: a larger k always lowers the loss, and what it costs (how sparse, how
readable the latents are) is not in the loss. docs/planning.md explains both frontiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from analysis.errors import TableError
from analysis.laws.forms import Array
from analysis.laws.tokens import token_terms
from analysis.planning.compute import Convention
from analysis.planning.profile import Profile
from analysis.planning.search import EdgeError, Search
from analysis.planning.stored import StoredLaw
from analysis.planning.variants import Estimate, Variants, exponential, nudged

COMPUTE_OPTIMAL = "compute-optimal"
DEFAULT_EXCESS = 0.05
_REACH = 4.0  # how far beyond the fitted n a size is looked for


@dataclass(frozen=True)
class FrontierPoint:
    """What a budget buys at one k: intervals are 95%, `loss` is that of the law at (n, tokens)."""

    rule: str  # "compute-optimal", or "to 5% above its limit"
    k: float
    flops: float
    n: Estimate
    tokens: Estimate
    loss: Estimate
    outside: str  # how far beyond the runs fitted; "" within them


@dataclass(frozen=True)
class Exponents:
    """n ~ C^of_n and D ~ C^of_tokens: slopes of a line through the frontier's budgets."""

    rule: str
    k: float
    of_n: Estimate
    of_tokens: Estimate


class Refused(NamedTuple):
    """A budget without a size: it lies at the edge of the search."""

    rule: str
    k: float
    flops: float
    where: str  # for example "at or above n = 8192"
    message: str


@dataclass(frozen=True)
class Frontier:
    points: tuple[FrontierPoint, ...]
    exponents: tuple[Exponents, ...]
    refused: tuple[Refused, ...]
    convention: Convention
    title: str  # of the law


def frontier(
    stored: StoredLaw,
    budgets: Sequence[float],
    ks: Sequence[float],
    convention: Convention,
    *,
    excess: float = DEFAULT_EXCESS,
    n_range: tuple[float, float] | None = None,
    variants: Variants | None = None,
) -> Frontier:
    """Both frontiers for every k and every budget [FLOPs], the compute-optimal one first.

    Intervals come from `variants`: `resampled(refits)`, or by default the delta method from the
    fit's covariance (`nudged`); a fit without one has no intervals. Sizes are looked for in
    `n_range`, by default from a quarter of the smallest n fitted to four times the largest; a
    budget whose size lies at its edge is refused by name.

    Raises:
        TableError: the law has no n or no tokens, says that tokens do not help, or the numbers
            asked for make no sense.
    """
    _check(stored, budgets, ks, excess)
    low, high = n_range or _default_range(stored)
    if not 0 < low < high:
        raise TableError(f"sizes from {low:g} to {high:g} are no range; give LOW,HIGH above 0.")
    if max(ks) >= high:
        raise TableError(
            f"k = {max(ks):g} leaves no size to look for: n goes to {high:g} only, and no more "
            "than n latents can be active. Give smaller --k, or a larger --n-range."
        )
    laws = nudged(stored) if variants is None else variants
    lines = [
        _line(
            _search(stored, (low, high), k, laws),
            Profile(type(stored.law), k, convention),
            budgets,
            goal,
        )
        for goal in (None, excess)
        for k in ks
    ]
    return Frontier(
        points=tuple(point for line in lines for point in line.points),
        exponents=tuple(line.exponents for line in lines if line.exponents is not None),
        refused=tuple(reason for line in lines for reason in line.refused),
        convention=convention,
        title=stored.title,
    )


def _search(stored: StoredLaw, n_range: tuple[float, float], k: float, laws: Variants) -> Search:
    """Among sizes of at least k latents: no more can be active than there are."""
    low, high = n_range
    return Search(stored, (float(np.log(max(low, k))), float(np.log(high))), laws)


def rule_of(excess: float | None) -> str:
    """How a frontier is named: by its excess over the limit of endless training, if it has one."""
    return COMPUTE_OPTIMAL if excess is None else f"to {100 * excess:.3g}% above its limit"


def default_budgets(stored: StoredLaw, convention: Convention) -> list[float]:
    """Powers of ten of FLOPs, from the middle of the runs fitted to ten times the largest of them.

    TableError where the file does not say the ranges of n and tokens.
    """
    if not {"n", "tokens"} <= set(stored.ranges):
        raise TableError("the fit does not say its ranges of n and tokens; give budgets.")
    k = max(stored.ranges.get("k", (1.0, 1.0)))
    (n_low, n_high), (d_low, d_high) = stored.ranges["n"], stored.ranges["tokens"]
    middle = convention.per_token((n_low * n_high) ** 0.5, k) * (d_low * d_high) ** 0.5
    largest = convention.per_token(n_high, k) * d_high
    first, last = int(np.ceil(np.log10(middle))), int(np.floor(np.log10(10 * largest)))
    return [10.0**power for power in range(first, max(first, last) + 1)]


_Found: TypeAlias = dict[float, tuple[float, Array]]
"""Budget -> ln n of the fit, and of every variant [B]."""


@dataclass(frozen=True)
class _Line:
    points: tuple[FrontierPoint, ...]
    exponents: Exponents | None
    refused: tuple[Refused, ...]


def _line(
    search: Search, profile: Profile, budgets: Sequence[float], excess: float | None
) -> _Line:
    """One rule at one k over the budgets."""
    rule = rule_of(excess)
    found: _Found = {}
    refused: list[Refused] = []
    for budget in sorted(set(budgets)):
        try:
            if excess is None:
                found[budget] = search.best(profile, budget)
            else:
                found[budget] = search.reached(profile, budget, excess, rule)
        except EdgeError as error:
            refused.append(Refused(rule, profile.k, budget, error.where, str(error)))
    points = [_point(search, profile, rule, budget, *sizes) for budget, sizes in found.items()]
    slopes = _exponents(search, profile, rule, found) if len(found) > 1 else None
    return _Line(tuple(points), slopes, tuple(refused))


def _point(
    search: Search, profile: Profile, rule: str, flops: float, log_n: float, variants_n: Array
) -> FrontierPoint:
    at, stored, variants = np.array([log_n]), search.stored, search.variants
    log_tokens = profile.log_tokens(at, flops)
    loss = profile.log_loss(stored.law.coefficients(), at, log_tokens)
    losses = profile.log_loss(variants.coefficients, at, log_tokens)[:, 0]
    with np.errstate(divide="ignore", over="ignore"):  # sizes of 0 and infinity are meant
        variants_tokens = profile.log_tokens(variants_n, flops)
    return FrontierPoint(
        rule=rule,
        k=profile.k,
        flops=flops,
        n=exponential(variants.interval(log_n, variants_n)),
        tokens=exponential(variants.interval(float(log_tokens[0]), variants_tokens)),
        loss=exponential(variants.interval(float(loss[0]), losses)),
        outside=stored.outside(profile.points(at, log_tokens))[0],
    )


def _exponents(search: Search, profile: Profile, rule: str, found: _Found) -> Exponents:
    log_flops = np.log(list(found))

    def slopes(log_n: Array) -> tuple[Array, Array]:
        """Of ln n and of ln D against ln C: [budgets, B] -> [B] each; NaN for infinite sizes."""
        finite = np.isfinite(log_n).all(axis=0)
        known = np.where(finite, log_n, 0.0)
        log_tokens = log_flops[:, None] - profile.log_cost(known)
        lines = (np.polyfit(log_flops, values, 1)[0] for values in (known, log_tokens))
        of_n, of_tokens = (np.where(finite, line, np.nan) for line in lines)
        return of_n, of_tokens

    fitted = slopes(np.array([[log_n] for log_n, _ in found.values()]))
    derived = slopes(np.array([log_n for _, log_n in found.values()]))
    of_n, of_tokens = (
        search.variants.interval(float(value[0]), others)
        for value, others in zip(fitted, derived, strict=True)
    )
    return Exponents(rule, profile.k, of_n, of_tokens)


def _default_range(stored: StoredLaw) -> tuple[float, float]:
    if "n" not in stored.ranges:
        raise TableError("the fit does not say its range of n; give one (--n-range LOW,HIGH).")
    low, high = stored.ranges["n"]
    return low / _REACH, high * _REACH


def _check(stored: StoredLaw, budgets: Sequence[float], ks: Sequence[float], excess: float) -> None:
    if not {"n", "tokens"} <= set(stored.law.axes):
        raise TableError(
            f"{stored.title} ({stored.law.name}) does not hold both n and tokens, so it has no "
            "best size for a budget; choose l_nkdu, l_nkd, l_nkd_additive or l_nd with --law."
        )
    slope = stored.law.coefficients()[token_terms(stored.law.form).slope]
    if slope >= 0:
        raise TableError(
            f"{stored.title} on {stored.rows} says that more tokens do not lower the loss (c = "
            f"{-slope:.3g}), so no budget has a best size. Check the learning rates of long runs."
        )
    if not budgets or not ks or min(*budgets, *ks) <= 0:
        raise TableError("budgets and k must be numbers above 0; give at least one of each.")
    low, high = stored.ranges.get("k", (0.0, np.inf))
    if "k" not in stored.law.axes and low == high and set(ks) != {low}:
        raise TableError(
            f"{stored.title} ({stored.law.name}) was fitted at k = {low:g} only and does not hold "
            f"k; ask for --k {low:g}, or choose a law with k."
        )
    if not 0 < excess < 10:
        raise TableError(f"an excess of {excess:g} over the limit is not between 0 and 10.")
