"""The laws beside each other: which form the runs prefer."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.report import page
from analysis.study import comparison
from analysis.study.study import HEADLINE_RULE, Study


def forms_compared(study: Study) -> Iterator[str]:
    """The laws with tokens beside each other, and which one leads the page."""
    rows = comparison.compare(study)
    if rows:
        yield page.table(comparison.HEADER, comparison.text_rows(rows))
        yield page.paragraph(comparison.verdict(study, rows))
    yield page.paragraph(f"Which law leads: {HEADLINE_RULE}", "soft")
