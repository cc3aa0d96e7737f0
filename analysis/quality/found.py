"""All that evaluations say of a sweep, metric by metric, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.counts import short_count
from analysis.quality.law import Tried, laws_tried
from analysis.quality.metrics import QUALITIES, Quality
from analysis.quality.trend import Trend, trend
from analysis.quality.values import Axis, Change, Values, at_one_budget, values_of
from analysis.records.exclusions import DEAD
from analysis.study.fitted import finite, to_json

SCHEMA_VERSION = 1
AXES: tuple[Axis, Axis] = ("n", "k")


@dataclass(frozen=True)
class MetricFound:
    """One metric over the runs that were evaluated for it."""

    values: Values
    trends: dict[Axis, Trend]
    laws: list[Tried]

    @property
    def law(self) -> Tried | None:
        """The one that holds."""
        return next((one for one in self.laws if one.holds), None)


@dataclass(frozen=True)
class QualityFound:
    metrics: list[MetricFound]
    refusals: dict[str, str]
    """Column -> why its numbers are not compared."""
    n_dead: int
    """Runs shown that no law is fitted to, for their latents are mostly dead."""
    n_left_out: int
    """Evaluated runs of other token budgets."""
    tokens: float | None
    """The budget of those shown; None where the records say none."""

    @property
    def is_empty(self) -> bool:
        return not (self.metrics or self.refusals)

    @property
    def words(self) -> str:
        """Which runs these are."""
        sizes = sorted({one.values.n_runs for one in self.metrics})
        count = " to ".join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
        at = "" if self.tokens is None else f" at {short_count(self.tokens)} tokens"
        return f"{count} runs{at}"

    @property
    def left_out(self) -> str:
        """A sentence on evaluated runs that are not shown; "" where all are."""
        one = self.n_left_out == 1
        count = f"{self.n_left_out} evaluated run{' is' if one else 's are'}"
        return f" {count} of other budgets, and left out." if self.n_left_out else ""


def quality(frame: pd.DataFrame, qualities: Sequence[Quality] = QUALITIES) -> QualityFound:
    """Of the runs in use that an evaluation has measured; columns as in `load_runs`.

    Runs whose latents are mostly dead count, as what a size and k came to; laws go without them.
    """
    reasons = frame["excluded"].astype(str)
    shown = frame.loc[(reasons == "") | reasons.str.startswith(DEAD)]
    shown, tokens, n_left_out = at_one_budget(shown, qualities)
    found = {one: values_of(shown, one, tokens) for one in qualities}
    metrics = [_metric(values) for values in found.values() if isinstance(values, Values)]
    return QualityFound(
        metrics,
        {one.column: why for one, why in found.items() if isinstance(why, str) and why},
        n_dead=max((one.values.n_dead for one in metrics), default=0),
        n_left_out=n_left_out,
        tokens=tokens,
    )


def _metric(values: Values) -> MetricFound:
    trends: dict[Axis, Trend] = {
        axis: found for axis in AXES if (found := trend(values, axis)) is not None
    }
    return MetricFound(values, trends, laws_tried(values))


def quality_json(found: QualityFound) -> dict[str, Any]:
    """quality.json."""
    return {
        "schema_version": SCHEMA_VERSION,
        "metrics": {one.values.quality.column: _metric_json(one) for one in found.metrics},
        "not_compared": found.refusals,
    }


def _metric_json(found: MetricFound) -> dict[str, Any]:
    values, noise = found.values, found.values.noise
    return {
        "tokens": values.tokens,
        "better": values.quality.better or None,
        "changes_are_of": "ln" if values.relative else "value",
        "runs": list(_runs_json(values)),
        "standard_error_of_a_run": values.beside.standard_error,
        "baselines": {name: values.beside.span(name) for name in values.beside.baselines},
        "sd_of_seeds": None if noise is None else noise.variance**0.5,
        "trends": {axis: _trend_json(trend) for axis, trend in found.trends.items()},
        "laws": [_tried_json(one) for one in found.laws],
    }


def _runs_json(values: Values) -> Iterator[dict[str, Any]]:
    for run in values.runs.to_dict("records"):
        yield {
            **{"run": str(run["run"]), "n": float(run["n"]), "k": float(run["k"])},
            **{"value": float(run["value"]), "mostly_dead": bool(run["dead"])},
        }


def _trend_json(found: Trend) -> dict[str, Any]:
    return {
        "per_doubling": found.slope,
        "ci95": found.interval,
        "ci95_of_draw": found.draw,
        "from_first_to_last": [{"at": level, **_change_json(one)} for level, one in found.ends],
        "steps": dict(found.counts),
        "turns": [turn._asdict() for turn in found.turns],
    }


def _change_json(one: Change) -> dict[str, Any]:
    return {"change": one.value, "ci95_of_seeds": one.interval}


def _tried_json(one: Tried) -> dict[str, Any]:
    return {
        "title": one.title,
        "holds": one.holds,
        "objection": one.objection or None,
        "fit": None if one.fitted is None else to_json(one.fitted),
        "lack_of_fit": None if one.lack is None else one.lack.json(),
        "held_out": None
        if one.held_out is None
        else {
            **{"rms_log": one.held_out.rms_log, "in_pi95": one.held_out.in_pi95},
            **{"n": len(one.held_out.table), "rms_log_of_n_before": finite(one.carried)},
        },
    }
