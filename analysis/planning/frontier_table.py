"""Frontiers as cells of a table, lines of text and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from analysis.planning import text
from analysis.planning.compute import Convention
from analysis.planning.frontier import Exponents, Frontier
from analysis.planning.search import EDGE_REMEDY
from analysis.planning.variants import Estimate

HEADER = ("k", "FLOPs", "rule", "n", "tokens", "loss", "outside the runs")
EXPONENTS_HEADER = ("k", "rule", "n ~ C^", "D ~ C^")

PAPER = (
    "Gao et al. 2024 trained to convergence: tokens ~ n^0.60 (GPT-2 small) to n^0.65 (GPT-4), so "
    "with FLOPs ~ n D, n ~ C^0.61 to 0.63 and D ~ C^0.37 to 0.39. Compare them with the second "
    "rule here, not with the compute-optimal one."
)
"""What the paper says of budgets: section 3.1 of arXiv 2406.04093; exponents 1 / (1 + 0.60). It
holds where FLOPs are as n D: in the dense convention, where both exponents add up to 1."""

SPARSE = (
    "Sparse FLOPs per token are d_model (2 n + 8 k), and part of them is of k: the exponents of n "
    "and D add up to more than 1. The paper's are for FLOPs ~ n D: compare them with those of "
    "--convention dense."
)


def about_exponents(convention: Convention) -> str:
    """How to read the exponents: beside the paper's, or why not."""
    return PAPER if convention.name == "dense" else SPARSE


def rows(frontier: Frontier) -> Iterator[tuple[str, ...]]:
    """Cells under HEADER: values with their 95% intervals in brackets."""
    for point in frontier.points:
        yield (
            f"{point.k:g}",
            f"{point.flops:.3g}",
            point.rule,
            _cell(point.n, text.size),
            _cell(point.tokens, text.tokens),
            _cell(point.loss, "{:.4g}".format),
            point.outside or "-",
        )


def exponent_rows(frontier: Frontier) -> Iterator[tuple[str, ...]]:
    """Cells under EXPONENTS_HEADER."""
    for line in frontier.exponents:
        cells = (_cell(e, "{:.3f}".format) for e in (line.of_n, line.of_tokens))
        yield (f"{line.k:g}", line.rule, *cells)


def frontier_text(frontier: Frontier) -> str:
    """Both tables, what was refused, and the paper's exponents, for a terminal."""
    parts = [
        f"{frontier.title}: best sizes by FLOPs, {frontier.convention.name} convention, d_model "
        f"{frontier.convention.d_model}; 95% intervals in brackets",
        text.aligned(HEADER, list(rows(frontier))),
        *refusals(frontier),
    ]
    if frontier.exponents:
        parts += ["", text.aligned(EXPONENTS_HEADER, list(exponent_rows(frontier)))]
        parts.append(about_exponents(frontier.convention))
    if any(point.outside for point in frontier.points):
        parts.append(
            "warning: outside the runs fitted an interval knows nothing of a wrong form of the "
            "law; compare the rival laws (--law)."
        )
    return "\n".join(parts)


def refusals(frontier: Frontier) -> list[str]:
    """A sentence per rule, k and edge for budgets without a size, and what to do about them."""
    groups: dict[tuple[str, float, str], list[str]] = {}
    for refused in frontier.refused:
        key = refused.rule, refused.k, refused.where
        groups.setdefault(key, []).append(f"{refused.flops:.3g}")
    lines = [
        f"refused: {', '.join(flops)} FLOPs at k = {k:g}, {rule}: {where}, the edge of the search."
        for (rule, k, where), flops in groups.items()
    ]
    return [*lines, EDGE_REMEDY] if lines else []


def frontier_json(frontier: Frontier) -> dict[str, Any]:
    """docs/planning.md lists the keys. null: an end that is not finite, or no interval."""
    return {
        "title": frontier.title,
        "convention": frontier.convention.name,
        "d_model": frontier.convention.d_model,
        "points": [
            {
                **{"rule": point.rule, "k": point.k, "flops": point.flops},
                **_estimate("n_latents", point.n),
                **_estimate("tokens", point.tokens),
                **_estimate("loss", point.loss),
                "outside": point.outside,
            }
            for point in frontier.points
        ],
        "exponents": [_exponents(line) for line in frontier.exponents],
        "refused": [refused._asdict() for refused in frontier.refused],
        "paper": about_exponents(frontier.convention),
    }


def _exponents(line: Exponents) -> dict[str, Any]:
    of_n, of_tokens = _estimate("of_n", line.of_n), _estimate("of_tokens", line.of_tokens)
    return {"rule": line.rule, "k": line.k, **of_n, **of_tokens}


def _estimate(name: str, estimate: Estimate) -> dict[str, Any]:
    ends = [end if math.isfinite(end) else None for end in (estimate.low, estimate.high)]
    return {name: estimate.value, f"{name}_ci95": ends}


def _cell(estimate: Estimate, form: Callable[[float], str]) -> str:
    if math.isnan(estimate.low):
        return form(estimate.value)
    # A size of 0 or infinity is one that no law nearby would choose within the search.
    low = "no end" if estimate.low in (0.0, -math.inf) else form(estimate.low)
    high = form(estimate.high) if math.isfinite(estimate.high) else "no end"
    return f"{form(estimate.value)} [{low}, {high}]"
