"""The laws beside each other: which form the runs prefer, which predicts what it never saw."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.judgement.rivals import Rival, Rivals
from analysis.report import page
from analysis.study.study import HEADLINE_RULE, Study

_SHORT = {
    "largest n": "held out: n",
    "largest tokens": "D",
    "largest tokens of each n": "D of each n",
    "largest n and largest tokens": "n and D",
}


def forms_compared(study: Study) -> Iterator[str]:
    """The headline law, other forms and what is nested in it, on the same runs."""
    if study.rivals is not None:
        rivals = study.rivals
        yield page.table(*_table(rivals))
        yield page.paragraph(rivals.message)
        yield page.paragraph(
            "dAICc is above the lowest, of the fits on all runs; errors of held-out runs are rms "
            "of ln loss, each from a fit without them. Where these laws predict alike, the runs do "
            "not tell their forms apart; where they differ at a size or budget of interest, take "
            "the difference as doubt that no interval holds.",
            "soft",
        )
    yield page.paragraph(f"Which law leads: {HEADLINE_RULE}", "soft")


def held_out_tests(study: Study) -> Iterator[str]:
    """How the headline law did on each held-out end of the runs."""
    if study.judged is None:
        return
    for test in study.judged.held_out:
        yield page.paragraph(test.message, "warn" if test.found else "")


def _table(rivals: Rivals) -> tuple[list[str], list[list[str]]]:
    plans = list(dict.fromkeys(test.plan for row in rivals.rows for test in row.held_out))
    header = ["law", "parameters", "rms residual", "dAICc", "weight"]
    return [*header, *(_SHORT.get(plan, plan) for plan in plans)], [
        _row(row, plans) for row in rivals.rows
    ]


def _row(row: Rival, plans: list[str]) -> list[str]:
    if row.refusal:
        return [row.law, str(row.n_parameters), row.refusal, *[""] * (2 + len(plans))]
    delta, weight = (
        "-" if value is None else text.format(value)
        for value, text in ((row.delta, "{:.1f}"), (row.weight, "{:.2f}"))
    )
    errors = [_percent(row.holdout_rms(plan)) for plan in plans]
    return [row.law, str(row.n_parameters), _percent(row.rms_log), delta, weight, *errors]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
