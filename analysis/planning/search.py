"""Finding sizes along a budget: the lowest loss, and where training comes near its limit.

ln L is convex in ln n along a budget for every law whose tokens lower the loss (a log-sum-exp of
convex functions with rising weights), so the lowest point of a grid brackets THE minimum.

B = laws, G = sizes on a grid, P = coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from analysis.errors import TableError
from analysis.laws.forms import Array
from analysis.planning.profile import Profile
from analysis.planning.stored import StoredLaw
from analysis.planning.variants import Variants

Curve: TypeAlias = Callable[[Array, Array], Array]
"""(ln n [G], coefficients [B, P]) -> [B, G]."""

# Other laws that the data allow may have their sizes farther out than the fit itself.
_VARIANTS_REACH = 1e3
_STEP = 0.25  # of ln n, on the grids that bracket
_SHRINK = (0.25, 0.03, 0.004)  # half widths of the parabolas that refine, in ln n
_CHUNK = 256  # laws at a time: what they share stays within tens of MB
_EDGE = 1e-4  # of ln n: nearer than this counts as at the edge

EDGE_REMEDY = (
    "Take a budget nearer to those of the runs, or widen the range of n (--n-range) knowing that "
    "the law is extrapolated."
)


class EdgeError(TableError):
    """A size lies at the edge of the search: `where` is for example "at or above n = 8192"."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


@dataclass(frozen=True)
class Search:
    """The range of ln n in which sizes are looked for, and the laws to look with."""

    stored: StoredLaw
    log_range: tuple[float, float]
    variants: Variants

    def best(self, profile: Profile, budget: float) -> tuple[float, Array]:
        """ln n of the lowest loss for a budget [FLOPs]: the fit's, and every variant's [B].

        A variant's is -inf or inf where it lies 1,000 times beyond the range. EdgeError where
        the fit's lies at an edge of the range.
        """

        def log_loss(log_n: Array, coefficients: Array) -> Array:
            return profile.log_loss(coefficients, log_n, profile.log_tokens(log_n, budget))

        log_n = self._minimum(log_loss)
        self._refuse_edge(log_n, profile, budget, "the lowest loss")
        return log_n, self._of_variants(log_loss, _lowest)

    def reached(
        self, profile: Profile, budget: float, excess: float, rule: str
    ) -> tuple[float, Array]:
        """ln n that a budget trains to `excess` above its limit, as `best` gives it."""

        def log_flops_left(log_n: Array, coefficients: Array) -> Array:
            needed = profile.log_tokens_to(coefficients, log_n, excess) + profile.log_cost(log_n)
            return needed - np.log(budget)

        fitted = self.stored.law.coefficients()
        ends = log_flops_left(np.array(self.log_range), fitted)
        if ends[1] <= ends[0]:
            # D* n falls with n: what trains one size trains every larger one.
            what = f"the largest size trained {rule} (which takes fewer FLOPs the larger n is)"
            self._refuse_edge(self.log_range[1], profile, budget, what)
        if not ends[0] < 0 < ends[1]:
            at = self.log_range[0 if ends[0] >= 0 else 1]
            self._refuse_edge(at, profile, budget, f"the size trained {rule}")
        log_n = brentq(lambda x: float(log_flops_left(np.array([x]), fitted)[0]), *self.log_range)
        assert isinstance(log_n, float)
        return log_n, self._of_variants(log_flops_left, _crossing)

    def _minimum(self, curve: Curve) -> float:
        fitted = self.stored.law.coefficients()
        grid = _grid(*self.log_range)
        at = int(np.argmin(curve(grid, fitted)))
        bracket = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
        found = minimize_scalar(
            lambda x: float(curve(np.array([x]), fitted)[0]),
            bounds=bracket,
            method="bounded",
            options={"xatol": 1e-9},
        )
        return float(found.x)  # pyright: ignore[reportAttributeAccessIssue]

    def _of_variants(self, curve: Curve, find: Callable[[Array, Curve, Array], Array]) -> Array:
        reach = float(np.log(_VARIANTS_REACH))
        grid = _grid(self.log_range[0] - reach, self.log_range[1] + reach)
        laws = self.variants.coefficients
        parts = [find(grid, curve, laws[i : i + _CHUNK]) for i in range(0, len(laws), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _refuse_edge(self, log_n: float, profile: Profile, budget: float, what: str) -> None:
        low, high = self.log_range
        if low + _EDGE < log_n < high - _EDGE:
            return
        side, edge = ("below", low) if log_n <= low + _EDGE else ("above", high)
        where = f"at or {side} n = {np.exp(edge):.0f}"
        fitted = self.stored.ranges.get("n")
        known = f" (runs have n {fitted[0]:.0f} to {fitted[1]:.0f})" if fitted else ""
        raise EdgeError(
            where,
            f"{budget:.3g} FLOPs at k = {profile.k:g}: {what} lies {where}, the edge of the "
            f"search{known}. {EDGE_REMEDY}",
        )


def _grid(low: float, high: float) -> Array:
    return np.linspace(low, high, max(3, int(np.ceil((high - low) / _STEP)) + 1))


def _lowest(grid: Array, curve: Curve, laws: Array) -> Array:
    """Where each law's curve is lowest, [B]; -inf or inf at an end of the grid."""
    at = np.argmin(curve(grid, laws), axis=1)
    inside = (at > 0) & (at < len(grid) - 1)
    found = grid[np.clip(at, 1, len(grid) - 2)]
    for half in _SHRINK:
        before, here, after = (_own(curve, found + step, laws) for step in (-half, 0.0, half))
        bend = before - 2 * here + after
        with np.errstate(all="ignore"):  # a curve without a bend has no better point
            shift = np.where(bend > 0, 0.5 * half * (before - after) / bend, 0.0)
        found = found + np.clip(shift, -2 * half, 2 * half)
    ends = np.where(at == 0, -np.inf, np.inf)
    return np.where(inside, found, ends)


def _crossing(grid: Array, curve: Curve, laws: Array) -> Array:
    """Where each law's rising curve crosses 0, [B]; -inf, inf beyond the grid, inf where it does
    not rise (tokens that do not help reach no limit)."""
    values = curve(grid, laws)
    below = (values < 0).sum(axis=1)
    inner = np.clip(below, 1, len(grid) - 1)
    rows = np.arange(len(laws))
    low, high = grid[inner - 1], grid[inner]
    at_low, at_high = values[rows, inner - 1], values[rows, inner]
    with np.errstate(all="ignore"):
        rises = np.isfinite(values).all(axis=1) & (np.diff(values, axis=1) > 0).all(axis=1)
        found = low - at_low * (high - low) / (at_high - at_low)
        slope = (at_high - at_low) / (high - low)
        # The curve is nearly straight within one step: two corrections leave rounding.
        for _ in range(2):
            found = found - _own(curve, found, laws) / slope
    inside = np.where(below == 0, -np.inf, np.where(below == len(grid), np.inf, found))
    return np.where(rises, inside, np.inf)


def _own(curve: Curve, log_n: Array, laws: Array) -> Array:
    """Each law's curve at its own point: [B], [B, P] -> [B]."""
    return np.diagonal(curve(log_n, laws))
