"""How far the headline law can be trusted: what was tested, and what came out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.judgement.floors import Floors
from analysis.judgement.identifiability import Span
from analysis.report import page
from analysis.report.sections.cells import cell_of, number
from analysis.report.sections.laws import parameters
from analysis.study import outliers
from analysis.study.judged import Judged
from analysis.study.study import Study


def judged(study: Study) -> Iterator[str]:
    """Lack of fit, sign runs, floors and what the design determines, each in a sentence."""
    found = study.judged
    if found is None:
        yield page.paragraph("There is no fit on all runs to judge.")
        return
    yield page.paragraph(f"Of {found.of.title}, {found.of.rows}:", "soft")
    for fired, message in _verdicts(found):
        yield page.paragraph(message, "warn" if fired else "")


def _verdicts(found: Judged) -> Iterator[tuple[bool, str]]:
    yield found.lack_of_fit.found, found.lack_of_fit.message
    yield from ((runs.found, runs.message) for runs in found.sign_runs)
    yield found.floors.found, found.floors.message


def floors(study: Study) -> Iterator[str]:
    """The floor at each k: of that k's runs alone, and of the joint law."""
    found = study.judged
    if found is not None and found.floors.slices:
        yield page.table(
            (
                "k",
                "runs",
                "floor of these runs",
                "95% interval",
                "floor of the law",
                "95% interval",
            ),
            _floor_rows(found.floors),
        )


def _floor_rows(found: Floors) -> Iterator[tuple[str, ...]]:
    for floor in found.slices:
        own, joint = (
            f"{low:.3f} to {high:.3f}" for low, high in (floor.own_interval, floor.joint_interval)
        )
        values = f"{floor.own:.3f}", own, f"{floor.joint:.3f}", joint
        yield (f"{floor.k:.0f}", str(floor.n_runs), *values)


def design(study: Study) -> Iterator[str]:
    """Levels and spans, and what they cannot determine."""
    found = study.judged
    if found is None:
        return
    yield page.table(("axis", "levels", "from", "to", "factor"), map(_span, found.design.spans))
    findings = found.design.findings
    for code, sentence in findings.items():
        yield page.paragraph(f"{code}: {sentence}", "warn")
    if not findings:
        yield page.paragraph(found.design.message)


def _span(span: Span) -> tuple[str, ...]:
    return (span.axis, str(span.n_levels), number(span.low), number(span.high), f"{span.factor:g}")


def far_runs(study: Study) -> Iterator[str]:
    """Outliers of the headline law, and its parameters with and without them."""
    yield page.paragraph(f"An outlier here: {outliers.RULE}. None is dropped.", "soft")
    found = study.outliers
    if found is None:
        yield page.paragraph("No run lies that far off.")
        return
    points = found.table.points
    rows = [
        (
            row["run"],
            *cell_of(points, i),
            f"{np.expm1(row['residual_log']):+.2%}",
            f"{row['mads']:.1f}",
        )
        for i, row in enumerate(found.rows())
    ]
    header = ("run", "n", "k", "tokens", "loss above law", "MAD")
    yield page.table(header, rows)
    if found.without is None:
        yield page.paragraph(f"Without them the law cannot be fitted: {found.refusal}", "warn")
        return
    yield page.paragraph(f"{found.all_runs.title}, with and without these runs:")
    yield parameters([found.all_runs, found.without])
