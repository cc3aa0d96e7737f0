"""What to train for a budget of compute: the law's frontiers, with intervals."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.planning import frontier_table as cells
from analysis.planning.frontier import Frontier
from analysis.report import page


def frontier(found: Frontier | None, refusal: str) -> Iterator[str]:
    """Both frontiers as tables; the reason where there are none."""
    if found is None:
        yield page.paragraph(f"No frontier follows from these fits: {refusal}", "soft")
        return
    yield page.paragraph(
        f"From {found.title} on all runs; FLOPs in the {found.convention.name} convention at "
        f"d_model {found.convention.d_model}. k is given and not chosen: a larger k always lowers "
        "the loss. Intervals hold the doubt of the parameters and assume the form of the law."
    )
    yield page.table(cells.HEADER, cells.rows(found))
    if found.exponents:
        yield page.table(cells.EXPONENTS_HEADER, cells.exponent_rows(found))
        yield page.paragraph(cells.PAPER, "soft")
    for sentence in cells.refusals(found):
        yield page.paragraph(sentence, "warn")
