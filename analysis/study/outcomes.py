"""A law tried on runs of a study: fitted, judged on the largest n, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import TableError
from analysis.laws.law import Law
from analysis.records.table import RunTable
from analysis.study.fitted import FitOptions, FittedLaw, title_of


@dataclass(frozen=True)
class LawOutcome:
    """One law: fitted without the largest n and judged on it, and fitted on every run."""

    law: type[Law]
    title: str
    tested: FittedLaw | None  # None: see refusals
    final: FittedLaw | None
    refusals: dict[str, str]  # "without the largest n" or "all runs" -> why there is no fit

    @property
    def best_known(self) -> FittedLaw | None:
        """The fit to draw: the tested one, so that held-out points are predictions."""
        return self.tested or self.final


@dataclass(frozen=True)
class Trials:
    """How laws are tried: all runs of the study, from which convergence is judged, and options."""

    runs: RunTable
    options: FitOptions

    def on(self, law: type[Law], part: RunTable, which: str = "") -> LawOutcome:
        """Try a law on some of the runs; `which` says in a word which they are."""
        largest = float(part.points["n"].max())
        held_out = part.points["n"] == largest
        plans = {
            f"{which}runs with n < {largest:g}": held_out,
            f"all {which}runs": None,
        }

        def fit(mask: NDArray[np.bool_] | None, rows: str) -> FittedLaw:
            # Losses of other budgets say nothing of a table of tokens.
            context = self.runs if part.response == "loss" else part
            return self.options.fit(law, part, held_out=mask, context=context, rows=rows)

        fits: dict[str, FittedLaw | None] = {}
        refusals: dict[str, str] = {}
        for rows, mask in plans.items():
            try:
                fits[rows] = fit(mask, rows)
            except TableError as refusal:
                fits[rows] = None
                refusals[rows] = str(refusal)
        tested, final = fits.values()
        return LawOutcome(law, title_of(law, part), tested, final, refusals)

    def on_chosen(
        self, law: type[Law], choose: Callable[[RunTable], RunTable], which: str
    ) -> LawOutcome:
        """Try a law on the runs that `choose` leaves; where it refuses, so is the law."""
        try:
            part = choose(self.runs)
        except TableError as refusal:
            return LawOutcome(law, law.title, None, None, {f"all {which}runs": str(refusal)})
        return self.on(law, part, which)
