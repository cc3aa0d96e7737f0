"""All that a report shows, worked out once: from here on there is only drawing and writing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.planning.compute import Convention
from analysis.planning.frontier import Frontier, default_budgets, frontier
from analysis.planning.frontier_table import frontier_json
from analysis.planning.stored import of_fitted
from analysis.planning.variants import resampled
from analysis.quality.found import QualityFound, quality
from analysis.records.load import runs_table
from analysis.study.facts import costs, provenance, subject, trained_tokens
from analysis.study.fitted import FitOptions
from analysis.study.run_cautions import run_cautions
from analysis.study.study import Study, study_runs

CONVENTION = "sparse"  # what the kernels here compute; the page names it


@dataclass(frozen=True)
class Contents:
    name: str  # of the sweep
    frame: pd.DataFrame  # as of load_runs
    study: Study
    frontier: Frontier | None
    frontier_refusal: str  # why there is none
    quality: QualityFound  # of evaluations; empty where there are none

    @property
    def facts(self) -> dict[str, Any]:
        return provenance(self.frame)

    @property
    def costs(self) -> dict[str, float | int | None]:
        return costs(self.frame)

    @property
    def cautions(self) -> dict[str, str]:
        return run_cautions(self.frame)

    @property
    def trained(self) -> list[int]:
        """Tokens that runs of the common budget trained, in whole batches."""
        budget = self.study.budget
        return [] if budget is None else trained_tokens(self.frame, budget)

    @property
    def subject(self) -> str:
        return subject(self.frame)

    def frontier_json(self) -> dict[str, Any] | None:
        return frontier_json(self.frontier) if self.frontier else None


def contents(frame: pd.DataFrame, *, name: str, loss: str, options: FitOptions) -> Contents:
    """Fit, judge and plan. TableError where no run can be used."""
    study = study_runs(runs_table(frame, loss), options)
    try:
        found, refusal = _frontier(study, frame), ""
    except TableError as error:
        found, refusal = None, str(error)
    return Contents(name, frame, study, found, refusal, quality(frame))


def _frontier(study: Study, frame: pd.DataFrame) -> Frontier:
    fitted = study.headline.final
    if fitted is None or "tokens" not in fitted.law.axes:
        raise TableError("no law with tokens is fitted to all runs.")
    widths = provenance(frame)["d_model"]
    if len(widths) != 1:
        raise TableError("the records do not say one d_model, which FLOPs need.")
    stored, convention = of_fitted(fitted, widths[0]), Convention(CONVENTION, int(widths[0]))
    return frontier(
        stored,
        default_budgets(stored, convention),
        np.unique(fitted.fit.table.points["k"]).tolist(),
        convention,
        variants=resampled(fitted.refits) if fitted.refits else None,
    )
