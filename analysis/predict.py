"""Predict runs from a stored fit: `python -m analysis.predict FITS n_latents=64k k=32 tokens=1e9`.

FITS is the JSON of `python -m analysis.fit`, or the fits.json of a report.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.command import check_paths, command_line, print_lines, run, write_json
from analysis.laws.forms import Points
from analysis.planning import text
from analysis.planning.context import read_context
from analysis.planning.quantities import grid
from analysis.planning.stored import Prediction, StoredLaw, check_point, read_law
from analysis.uncertainty.interval import Interval

_HEADINGS = {"n": "n_latents", "subject": "subject_params"}


@command_line
def predict_command(argv: Sequence[str] | None = None) -> None:
    """Print predictions with their intervals, and what to know before believing them."""
    options = _parser().parse_intermixed_args(argv)
    check_paths(options)
    stored = read_law(options.fits, law=options.law, rows=options.rows)
    context = read_context(options.fits)
    points = grid(options.points)
    check_point(stored, points)
    predicted = stored.predict(points)
    if options.json is not None:
        write_json(options.json, prediction_json(stored, points, predicted))
    print(describe_source(stored))
    print(prediction_table(stored, points, predicted))
    print_lines(context.lines(points.get("tokens", np.zeros(0)).tolist()))


def describe_source(stored: StoredLaw) -> str:
    """Which fit speaks, and what is to be known before it is believed."""
    lines = [f"{stored.title} ({stored.law.name}), fitted on {stored.rows}: {stored.n_runs} runs"]
    ranges = [
        f"{axis} {text.of_axis(axis, low)} to {text.of_axis(axis, high)}"
        for axis, (low, high) in stored.ranges.items()
    ]
    lines += [f"  fitted ranges: {', '.join(ranges)}"] if ranges else []
    shared = stored.shared_by
    lines += [f"  intervals hold errors shared by runs of one {shared}"] if shared else []
    return "\n".join([*lines, *(f"  warning {c}: {m}" for c, m in stored.warnings.items())])


def prediction_table(stored: StoredLaw, points: Points, predicted: Prediction) -> str:
    """A line per point: value, both 95% intervals, and how far it lies outside the runs fitted."""
    beyond = stored.outside(points)
    header = [*(_HEADINGS.get(axis, axis) for axis in points), _response(stored)]
    header += ["95% of the law", "95% of a run", "outside"]
    rows = []
    for row, note in enumerate(beyond):
        value = float(predicted.value[row])
        shown = text.tokens(value) if stored.law.response == "tokens" else f"{value:.4g}"
        at = (text.of_axis(axis, float(values[row])) for axis, values in points.items())
        cells = [*at, shown]
        intervals = (text.between(i, row) for i in (predicted.of_law, predicted.of_run))
        rows.append([*cells, *intervals, note or "-"])
    notes = [] if predicted.of_law else [_NO_INTERVALS]
    notes += [_BEYOND] if any(beyond) else []
    return "\n".join([text.aligned(header, rows), *notes])


_NO_INTERVALS = "no intervals: the runs left a combination of the parameters free (rank_deficient)."
_BEYOND = (
    "warning: outside the runs fitted an interval knows nothing of a wrong form of the law; "
    "compare the rival laws (--law)."
)


def prediction_json(stored: StoredLaw, points: Points, predicted: Prediction) -> dict[str, Any]:
    """The same table as an object: `predictions` has one object per point."""
    beyond = stored.outside(points)

    def ends(interval: Interval | None, row: int) -> list[float] | None:
        return None if interval is None else [float(end[row]) for end in interval]

    return {
        **{"law": stored.law.name, "title": stored.title, "rows": stored.rows},
        "predictions": [
            {
                **{_HEADINGS.get(axis, axis): float(v[row]) for axis, v in points.items()},
                _response(stored): float(predicted.value[row]),
                "law_ci95": ends(predicted.of_law, row),
                "run_pi95": ends(predicted.of_run, row),
                "outside": note,
            }
            for row, note in enumerate(beyond)
        ],
    }


def _response(stored: StoredLaw) -> str:
    return stored.loss if stored.law.response == "loss" else "tokens_to_convergence"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.predict", description="Predict runs from a stored fit."
    )
    parser.add_argument("fits", type=Path, help="JSON of analysis.fit, or a report's fits.json")
    parser.add_argument(
        "points",
        nargs="+",
        metavar="NAME=VALUE[,VALUE...]",
        help="n_latents, k, tokens, ...: every combination; 64k is 64,000, also M, B, 1e9",
    )
    parser.add_argument("--law", help="law of fits.json, by name or title (default: headline)")
    parser.add_argument("--rows", help="words of the fit's rows (default: the fit on all runs)")
    parser.add_argument("--json", type=Path, help="where to write the table")
    return parser


if __name__ == "__main__":
    run(predict_command)
