"""Every law with its parameters, intervals, warnings and uses."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.command import holdout_line
from analysis.report import page
from analysis.report.sections.cells import number
from analysis.study.fitted import FittedLaw
from analysis.study.study import LawOutcome, Study
from analysis.study.uses import uses


def laws(study: Study) -> Iterator[str]:
    for outcome in study.outcomes:
        if outcome.best_known is not None:
            yield f'<div class="law">{"".join(_law(outcome))}</div>'
    refused = [refusal for outcome in study.outcomes for refusal in _refusals(outcome)]
    if refused:
        yield page.heading("Not fitted, and why", 3)
        yield page.table(("law", "on", "reason"), refused)


def _refusals(outcome: LawOutcome) -> list[tuple[str, str, str]]:
    """One line per reason: the same one often stands in the way of both fits."""
    by_reason: dict[str, list[str]] = {}
    for rows, reason in outcome.refusals.items():
        by_reason.setdefault(reason, []).append(rows)
    return [(outcome.title, " and ".join(rows), reason) for reason, rows in by_reason.items()]


def _law(outcome: LawOutcome) -> Iterator[str]:
    fits = [fitted for fitted in (outcome.tested, outcome.final) if fitted is not None]
    first = fits[0]
    sizes = ", ".join(f"{name} = {value:g}" for name, value in first.law.reference.items())
    yield page.heading(f"{outcome.title} ({first.law.name})", 3)
    yield page.paragraph(first.law.formula + (f", at {sizes}" if sizes else ""))
    yield parameters(fits)
    for fitted in fits:
        found = f"{fitted.rows}: rms log residual {fitted.fit.rms_log_residual:.2%} over "
        agreeing = sum(start.is_best for start in fitted.fit.starts)
        found += f"{len(fitted.fit.table)} runs, {agreeing} of {len(fitted.fit.starts)} starts "
        found += "reached this optimum"
        yield page.paragraph(found + (f"; {holdout_line(fitted)}." if fitted.holdout else "."))
    may, may_not = uses(fits[-1])
    yield page.paragraph(f"May be used for: {may}")
    yield page.paragraph(f"May not be used for: {may_not}")
    warnings = {code: text for fitted in reversed(fits) for code, text in fitted.warnings.items()}
    for code, message in warnings.items():
        yield page.paragraph(f"{code}: {message}", "warn")


def parameters(fits: list[FittedLaw]) -> str:
    header = ["parameter"]
    for fitted in fits:
        header += [fitted.rows, "95% interval", "se"]
    intervals = [fitted.ci95 for fitted in fits]
    rows = []
    for name in fits[0].law.parameter_names:
        row = [name]
        for fitted, interval in zip(fits, intervals, strict=True):
            low, high = interval[name]
            known = fitted.fit.full_rank
            error = number(fitted.fit.standard_errors[name], 2) if known else "none"
            value = fitted.law.parameters[name]
            row += [number(value), f"{number(low)} to {number(high)}", error]
        rows.append(row)
    return page.table(header, rows)
