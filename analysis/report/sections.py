"""The text of the report: what was found, what each fit is for, what was left out, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from analysis.command import holdout_line
from analysis.counts import short_count
from analysis.judgement.convergence import FallingPairs
from analysis.judgement.holdout import Holdout
from analysis.laws.forms import Points
from analysis.laws.joint import LatentsAndK
from analysis.report import page
from analysis.study import comparison, outliers
from analysis.study.fitted import FittedLaw
from analysis.study.study import HEADLINE_RULE, LawOutcome, Study
from analysis.study.uses import uses

_SECONDS_PER_HOUR = 3600


def summary(study: Study) -> Iterator[str]:
    """The headline law and the four figures to read first."""
    fitted = study.headline.best_known
    values = [(str(len(study.table)), "runs used")]
    values += [
        (_share(pair), f"of {pair.n_pairs} adjacent pairs: loss falls with {pair.axis}")
        for pair in study.pairs[:2]
    ]
    if fitted is None:
        yield page.cards(values)
        yield page.paragraph(
            "No law can be fitted to these runs yet; the reasons stand below, law by law.", "warn"
        )
        return
    values.append(
        (
            f"{fitted.fit.rms_log_residual:.2%}",
            f"rms log residual of {fitted.law.name}, {len(fitted.fit.table)} runs fitted",
        )
    )
    if fitted.holdout is not None:
        largest = f"{fitted.holdout.table.points['n'].max():.0f}"
        count = len(fitted.holdout.table)
        runs = f"{count} run{'s' if count > 1 else ''} held out, n = {largest}"
        values.append((f"{fitted.holdout.rms_log:.2%}", f"rms log error of {runs}"))
    yield page.cards(values)
    yield page.paragraph(fitted.law.formula)
    if fitted.law.name != LatentsAndK.name:
        yield page.paragraph(f"where {LatentsAndK.formula}")


def cautions(found: dict[str, str]) -> Iterator[str]:
    """What concerns every law of these runs."""
    for code, message in found.items():
        yield page.paragraph(f"{code}: {message}", "warn")


def laws(study: Study) -> Iterator[str]:
    for outcome in study.outcomes:
        if outcome.best_known is not None:
            yield f'<div class="law">{"".join(_law(outcome))}</div>'
    refused = [refusal for outcome in study.outcomes for refusal in _refusals(outcome)]
    if refused:
        yield page.heading("Not fitted, and why", 3)
        yield page.table(("law", "on", "reason"), refused)


def forms_compared(study: Study) -> Iterator[str]:
    """The laws with tokens beside each other, and which one leads the page."""
    rows = comparison.compare(study)
    if rows:
        yield page.table(comparison.HEADER, comparison.text_rows(rows))
        yield page.paragraph(comparison.verdict(study, rows))
    yield page.paragraph(f"Which law leads: {HEADLINE_RULE}", "soft")


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
            *_cell_of(points, i),
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
    yield _parameters([found.all_runs, found.without])


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
    yield _parameters(fits)
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


def _parameters(fits: list[FittedLaw]) -> str:
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
            error = _number(fitted.fit.standard_errors[name], 2) if known else "none"
            value = fitted.law.parameters[name]
            row += [_number(value), f"{_number(low)} to {_number(high)}", error]
        rows.append(row)
    return page.table(header, rows)


def falling(study: Study) -> Iterator[str]:
    rows = [
        (pair.axis, f"{pair.n_falling} of {pair.n_pairs}", _share(pair)) for pair in study.pairs
    ]
    yield page.paragraph(
        "Pairs of runs at adjacent levels of one coordinate with all others equal. A share below "
        "100% says that noise or under-training is as large as the effect in places."
    )
    yield page.table(("along", "loss falls in", "share"), rows)


def held_out_runs(study: Study) -> Iterator[str]:
    fitted = study.headline.best_known
    if fitted is None or fitted.holdout is None:
        yield page.paragraph("No run was held out: the fit needs all of them, or there is none.")
        return
    held = fitted.holdout
    yield page.paragraph(
        f"{fitted.title} was fitted on {fitted.rows} and then asked for the largest n. The "
        "prediction interval holds the parameters' doubt and the noise of a run; it assumes that "
        "the form of the law goes on to hold."
    )
    header = ("run", "n", "k", "tokens", "loss", "predicted", "95% prediction interval", "error")
    yield page.table(header, _held_out_rows(held))


def _held_out_rows(held: Holdout) -> Iterator[list[str]]:
    points, losses = held.table.points, held.table.loss
    predicted = losses / np.exp(held.residuals)
    for i, (run, loss) in enumerate(zip(held.table.runs, losses, strict=True)):
        low, high = held.interval.low[i], held.interval.high[i]
        yield [
            run,
            *_cell_of(points, i),
            *(f"{loss:.4f}", f"{predicted[i]:.4f}", f"{low:.4f} to {high:.4f}"),
            f"{held.residuals[i]:+.2%}" + ("" if low <= loss <= high else " (outside)"),
        ]


def _cell_of(points: Points, row: int) -> tuple[str, str, str]:
    n, k, tokens = (float(points[axis][row]) for axis in ("n", "k", "tokens"))
    return f"{n:.0f}", f"{k:.0f}", short_count(tokens)


def excluded(study: Study, n_records: int) -> Iterator[str]:
    dropped = study.table.dropped
    yield page.paragraph(
        f"{len(study.table)} of {n_records} runs are used."
        + ("" if dropped else " None was excluded.")
    )
    if dropped:
        yield page.table(("run", "reason"), dropped)


def cost(costs: dict[str, Any]) -> Iterator[str]:
    yield page.table(("quantity", "value"), [(name, _amount(name, v)) for name, v in costs.items()])
    yield page.paragraph(
        "Summed over the runs used. train_s is the training loop with its evaluations and "
        "checkpoints, wall_s also opening, the final measurement and earlier attempts; elapsed_s "
        "runs from the first start to the last end, pauses included. peak_memory_bytes is the "
        "largest of any run's process, an upper bound: it counts memory-mapped activations and "
        "what earlier runs of the same worker had taken.",
        "soft",
    )


def provenance(facts: dict[str, Any]) -> Iterator[str]:
    yield page.table(("what", "value"), [(name, _plain(value)) for name, value in facts.items()])


def _number(value: float, digits: int = 4) -> str:
    """Significant digits; plain thousands instead of exponents for token counts."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if 1e3 <= abs(rounded) < 1e12 else f"{rounded:g}"


def _amount(name: str, value: float | None) -> str:
    if value is None:
        return "not recorded"
    if name.endswith("_s"):
        hours = f" ({value / _SECONDS_PER_HOUR:.2f} h)" if value > _SECONDS_PER_HOUR else ""
        return f"{value:,.1f} s{hours}"
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:.3e}" if name.startswith("flops") else f"{value:,.0f}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "not recorded"
    return {True: "yes", False: "no"}.get(value, str(value))


def _share(pair: FallingPairs) -> str:
    return "no pairs" if pair.share is None else f"{pair.share:.0%}"


def budget_note(study: Study, trained: list[int]) -> str:
    """Said once: budgets are named by what was asked for, and whole batches make a bit less."""
    budget, counts = short_count(study.budget), " or ".join(f"{count:,}" for count in trained)
    return (
        f"D = {budget} tokens is the budget that most values of n share; runs of other budgets "
        f"enter the laws with tokens only. Budgets are those asked for: runs of {budget} trained "
        f"{counts} tokens in whole batches."
    )
