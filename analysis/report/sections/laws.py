"""Every law with its parameters, intervals, warnings and uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from analysis.report import page
from analysis.report.sections.cells import number
from analysis.study.fitted import FittedLaw
from analysis.study.study import LawOutcome, Study
from analysis.study.uses import uses
from analysis.study.words import holdout_line


def laws(study: Study) -> Iterator[str]:
    for outcome in dict.fromkeys((study.headline, *study.with_tokens)):
        if outcome.best_known is not None:
            yield page.panel("".join(_law(outcome, study)))
    yield from _folded(study.without_tokens, "Laws without tokens", study)
    yield from _folded(study.others, "Other laws", study)
    refused = [refusal for outcome in study.outcomes for refusal in _refusals(outcome)]
    if refused:
        yield page.heading("Not fitted, and why", 3)
        yield page.table(("law", "on", "reason"), refused)


def _folded(outcomes: Sequence[LawOutcome], title: str, study: Study) -> Iterator[str]:
    """Panels that open on a click; the headline has its own."""
    shown = [o for o in outcomes if o.best_known is not None and o is not study.headline]
    if shown:
        panels = "".join(page.panel("".join(_law(outcome, study))) for outcome in shown)
        yield page.folded(f"{title} ({len(shown)})", panels)


def _refusals(outcome: LawOutcome) -> list[tuple[str, str, str]]:
    """One line per reason: the same one often stands in the way of both fits."""
    by_reason: dict[str, list[str]] = {}
    for rows, reason in outcome.refusals.items():
        by_reason.setdefault(reason, []).append(rows)
    return [(outcome.title, " and ".join(rows), reason) for reason, rows in by_reason.items()]


def _law(outcome: LawOutcome, study: Study) -> Iterator[str]:
    leader = study.headline.final or study.headline.best_known
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
    said = uses(fits[-1])
    if leader is None or leader is fits[-1] or said != uses(leader):
        yield page.paragraph(f"May be used for: {said.may}")
        yield page.paragraph(f"May not be used for: {said.may_not}")
    else:
        yield page.paragraph("May and may not be used as the headline law.", "soft")
    for code, message, where in _warnings(fits):
        yield page.paragraph(f"{code}{where}: {message}", "warn")
    if fits[-1].fit.full_rank:
        yield page.folded(
            f"Correlations of the parameters, {fits[-1].rows}", _correlations(fits[-1])
        )


def _warnings(fits: list[FittedLaw]) -> Iterator[tuple[str, str, str]]:
    """Code, message, and of which fit it speaks; said once where both fits say the same."""
    said: dict[tuple[str, str], list[str]] = {}
    for fitted in fits:
        for code, message in fitted.warnings.items():
            said.setdefault((code, message), []).append(fitted.rows)
    for (code, message), rows in said.items():
        yield code, message, "" if len(rows) == len(fits) else f" ({rows[0]})"


def _correlations(fitted: FittedLaw) -> str:
    """[P, P] from the covariance; a parameter known exactly has none."""
    covariance, names = fitted.fit.covariance, fitted.law.parameter_names
    errors = np.sqrt(np.diag(covariance))
    with np.errstate(all="ignore"):
        correlation = covariance / np.outer(errors, errors)
    rows = [
        [name, *("-" if np.isnan(value) else f"{value:.2f}" for value in row)]
        for name, row in zip(names, correlation.tolist(), strict=True)
    ]
    return page.table(["", *names], rows)


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
            none = name == "E" and fitted.no_floor
            value = "0 (none)" if none else number(fitted.law.parameters[name])
            row += [value, f"{number(low)} to {number(high)}", error]
        rows.append(row)
    return page.table(header, rows)
