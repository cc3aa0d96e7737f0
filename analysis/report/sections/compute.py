"""What to train for a budget of compute: the law's frontiers, with intervals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.counts import short_count
from analysis.planning import frontier_table as cells
from analysis.planning.frontier import Frontier
from analysis.report import page
from analysis.study.study import Study
from analysis.uncertainty.budgets import TokenBudget, tokens_to_reach

_EXCESSES = (0.2, 0.05)


def frontier(found: Frontier | None, refusal: str) -> Iterator[str]:
    """Both frontiers as tables; the reason where there are none."""
    if found is None:
        yield page.paragraph(f"No frontier follows from these fits: {refusal}", "soft")
        return
    yield page.paragraph(
        f"From {found.title} on all runs; FLOPs in the {found.convention.name} convention at "
        f"d_model {found.convention.d_model}. k is given and not chosen: a larger k always lowers "
        "the loss. Intervals hold how well the parameters are known and assume the form of the law."
    )
    yield page.table(cells.HEADER, cells.rows(found))
    if found.exponents:
        yield page.table(cells.EXPONENTS_HEADER, cells.exponent_rows(found))
        yield page.paragraph(cells.about_exponents(found.convention), "soft")
    for sentence in cells.refusals(found):
        yield page.paragraph(sentence, "warn")


def budgets(study: Study) -> Iterator[str]:
    """D*(n): tokens until the loss is a stated share above its limit, at the middle k."""
    fitted = study.headline.final
    if fitted is None or "tokens" not in fitted.law.axes:
        return
    sizes = np.unique(fitted.fit.table.points["n"])
    k = fitted.fit.reference["k"]
    found = [tokens_to_reach(fitted, sizes, k, excess) for excess in _EXCESSES]
    yield page.heading("Tokens to come near the limit", 3)
    header = [f"tokens to {excess:.0%} above the limit" for excess in _EXCESSES]
    rows = [
        [f"{n:.0f}", *(_budget(each, row) for each in found)]
        for row, n in enumerate(sizes.tolist())
    ]
    yield page.table(("n", *header), rows)
    longest = short_count(float(fitted.fit.table.points["tokens"].max()))
    yield page.paragraph(
        f"At k = {k:g}, from {fitted.title} on all runs; 95% intervals of the parameters. The "
        f"limit is that of the law, and the longest run had {longest} tokens: budgets above that "
        "are extrapolations.",
        "soft",
    )


def _budget(found: TokenBudget, row: int) -> str:
    value, low, high = (
        short_count(float(f"{end[row]:.3g}")) for end in (found.tokens, found.low, found.high)
    )
    return f"{value} [{low}, {high}]"
