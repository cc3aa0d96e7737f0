"""How numbers, shares and cells of a sweep read in the tables of a report."""

from __future__ import annotations

from typing import Any

from analysis.counts import short_count
from analysis.judgement.convergence import FallingPairs
from analysis.laws.forms import Points

_SECONDS_PER_HOUR = 3600


def number(value: float, digits: int = 4) -> str:
    """Significant digits; plain thousands instead of exponents for token counts."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if 1e3 <= abs(rounded) < 1e12 else f"{rounded:g}"


def amount(name: str, value: float | None) -> str:
    if value is None:
        return "not recorded"
    if name.endswith("_s"):
        hours = f" ({value / _SECONDS_PER_HOUR:.2f} h)" if value > _SECONDS_PER_HOUR else ""
        return f"{value:,.1f} s{hours}"
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:.3e}" if name.startswith("flops") else f"{value:,.0f}"


def plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "not recorded"
    return {True: "yes", False: "no"}.get(value, str(value))


def share(pair: FallingPairs) -> str:
    return "no pairs" if pair.share is None else f"{pair.share:.0%}"


def cell_of(points: Points, row: int) -> tuple[str, str, str]:
    n, k, tokens = (float(points[axis][row]) for axis in ("n", "k", "tokens"))
    return f"{n:.0f}", f"{k:.0f}", short_count(tokens)
