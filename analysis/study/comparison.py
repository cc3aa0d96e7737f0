"""The laws with tokens beside each other: the same runs, the same held-out runs, another form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from analysis.judgement.rivals import aicc, akaike
from analysis.study.study import HEADLINE_RULE, Study


@dataclass(frozen=True)
class Row:
    """One law; errors are of ln loss. None where the law was not fitted to those runs."""

    law: str
    n_parameters: int
    n_fitted: int | None  # runs below the largest n
    rms_log_residual: float | None
    n_held_out: int | None
    holdout_rms_log: float | None
    holdout_worst_log: float | None
    holdout_in_pi95: int | None
    aicc_all_runs: float | None  # of the fit on all runs; lower is better
    delta: float | None = None  # of that above the lowest
    weight: float | None = None  # Akaike weight among the laws of the table


def compare(study: Study) -> list[Row]:
    """A row per law with tokens that could be fitted, the headline's order first to last."""
    rows = []
    for outcome in study.with_tokens:
        tested = outcome.tested
        held = tested.holdout if tested is not None else None
        if outcome.best_known is None:
            continue
        rows.append(
            Row(
                law=outcome.law.name,
                n_parameters=len(outcome.law.parameter_names),
                n_fitted=len(tested.fit.table) if tested else None,
                rms_log_residual=tested.fit.rms_log_residual if tested else None,
                n_held_out=len(held.table) if held else None,
                holdout_rms_log=held.rms_log if held else None,
                holdout_worst_log=held.worst_log if held else None,
                holdout_in_pi95=held.in_pi95 if held else None,
                aicc_all_runs=aicc(outcome.final.fit) if outcome.final else None,
            )
        )
    deltas, weights = akaike([row.aicc_all_runs for row in rows])
    return [
        replace(row, delta=delta, weight=weight)
        for row, delta, weight in zip(rows, deltas, weights, strict=True)
    ]


def comparison_json(study: Study) -> dict[str, Any]:
    return {"rule": HEADLINE_RULE, "laws": [asdict(row) for row in compare(study)]}


HEADER = (
    *("law", "parameters", "rms residual", "held-out rms", "worst", "in 95% PI"),
    *("AICc, all runs (lowest = 0)", "weight"),
)


def text_rows(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """Cells of the page's table under HEADER."""
    for row in rows:
        inside = f"{row.holdout_in_pi95} of {row.n_held_out}" if row.n_held_out else "-"
        yield (
            row.law,
            str(row.n_parameters),
            *map(_percent, (row.rms_log_residual, row.holdout_rms_log, row.holdout_worst_log)),
            inside,
            "-" if row.delta is None else f"{row.delta:.1f}",
            "-" if row.weight is None else f"{row.weight:.2f}",
        )


def verdict(study: Study, rows: list[Row]) -> str:
    """Which form came closest to the held-out runs, whether or not it is the headline."""
    judged = [row for row in rows if row.holdout_rms_log is not None]
    if len(judged) < 2:
        return ""
    closest = min(judged, key=lambda row: row.holdout_rms_log or 0.0)
    leads = "the headline law" if closest.law == study.headline.law.name else "not the headline"
    return (
        f"Closest to the {closest.n_held_out} held-out runs: {closest.law}, {leads}. Where these "
        "laws predict alike, the runs do not tell their forms apart; where they differ at a size "
        "or budget of interest, take the difference as doubt that no interval holds."
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
