"""Runs that the fit never saw, against what it said of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.judgement.holdout import Holdout
from analysis.records.columns import numbers
from analysis.report import page
from analysis.report.sections.cells import cell_of
from analysis.study.study import Study


def held_out_runs(study: Study, frame: pd.DataFrame) -> Iterator[str]:
    fitted = study.headline.best_known
    if fitted is None or fitted.holdout is None:
        yield page.paragraph("No run was held out: the fit needs all of them, or there is none.")
        return
    held = fitted.holdout
    yield page.paragraph(
        f"{fitted.title} was fitted on {fitted.rows} and then asked for the largest n. The "
        "prediction interval holds how well its parameters are known and the noise of a run; it "
        "assumes that the form of the law goes on to hold."
    )
    header = ("run", "n", "k", "tokens", "loss", "predicted", "95% prediction interval", "error")
    yield page.table([*header, "dead"], _held_out_rows(held, _dead_shares(frame)))


def _dead_shares(frame: pd.DataFrame) -> dict[str, float]:
    shares = numbers(frame, "dead_fraction")
    known = np.isfinite(shares)
    return dict(zip(frame["run_id"][known], shares[known].tolist(), strict=True))


def _held_out_rows(held: Holdout, dead: dict[str, float]) -> Iterator[list[str]]:
    points, losses = held.table.points, held.table.loss
    predicted = losses / np.exp(held.residuals)
    for i, (run, loss) in enumerate(zip(held.table.runs, losses, strict=True)):
        low, high = held.interval.low[i], held.interval.high[i]
        yield [
            run,
            *cell_of(points, i),
            *(f"{loss:.4f}", f"{predicted[i]:.4f}", f"{low:.4f} to {high:.4f}"),
            f"{held.residuals[i]:+.2%}" + ("" if low <= loss <= high else " (outside)"),
            f"{dead[run]:.0%}" if run in dead else "-",
        ]
