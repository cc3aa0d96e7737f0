"""The laws beside each other: which form the runs prefer, which predicts what it never saw."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.counts import short_count
from analysis.judgement.rivals import Rival, Rivals
from analysis.laws.forms import Points
from analysis.planning.stored import of_fitted
from analysis.report import page
from analysis.study.fitted import FittedLaw
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
            "the difference as an uncertainty that no interval holds.",
            "soft",
        )
    yield page.paragraph(f"Which law leads: {HEADLINE_RULE}", "soft")


def held_out_tests(study: Study) -> Iterator[str]:
    """How the headline law did on each held-out end of the runs."""
    if study.judged is None:
        return
    for test in study.judged.held_out:
        yield page.paragraph(test.message, "warn" if test.found else "")


def beyond(study: Study) -> Iterator[str]:
    """What each form says of twice the largest n: where they part, an interval holds no form."""
    fits = [outcome.final for outcome in study.with_tokens if outcome.final is not None]
    if len(fits) < 2:
        return
    points = {axis: np.array([values.max()]) for axis, values in study.table.points.items()}
    points |= {"n": 2 * points["n"], "k": np.array([fits[0].fit.reference["k"]])}
    at = f"n = {points['n'][0]:.0f}, k = {points['k'][0]:g}, D = {short_count(points['tokens'][0])}"
    yield page.heading(f"What they say of {at}", 3)
    yield page.table(
        ("law", "loss", "95% interval of the law", "95% interval of a run"),
        [_prediction(fitted, points) for fitted in fits],
    )


def _prediction(fitted: FittedLaw, points: Points) -> tuple[str, ...]:
    said = of_fitted(fitted).predict(points)
    intervals = (
        "-" if each is None else f"{each.low[0]:.4f} to {each.high[0]:.4f}"
        for each in (said.of_law, said.of_run)
    )
    return (fitted.law.name, f"{said.value[0]:.4f}", *intervals)


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
