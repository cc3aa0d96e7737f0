"""How evaluated quality moves with n and k: `python -m analysis.quality SOURCE...`.

Reads runs that `python -m scaling.evaluate` has measured. The report of a sweep has the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.command import check_paths, command_line, print_lines, write_json
from analysis.errors import TableError
from analysis.files import cannot_write
from analysis.quality.found import QualityFound, quality, quality_json
from analysis.quality.metrics import QUALITIES, Quality
from analysis.records.exclusions import exclusions
from analysis.records.load import load_runs
from analysis.records.rejected import REJECTED
from analysis.report.plots.quality import drawings
from analysis.report.plots.style import save_figures
from analysis.report.sections.quality import lines


@command_line
def quality_command(argv: Sequence[str] | None = None) -> None:
    """Print trends and laws; write JSON and figures where asked."""
    options = _parser().parse_args(argv)
    check_paths(options)
    chosen = _chosen(options.columns)
    frame = load_runs(list(options.source), allow=(*options.allow, REJECTED))
    found = quality(frame, chosen)
    if found.is_empty:
        raise TableError(_why_empty(frame, ", ".join(options.source)))
    if options.json is not None:
        write_json(options.json, quality_json(found))
    if options.figures is not None:
        _draw(found, options.figures)
    print_lines(lines(found))


def _chosen(text: str | None) -> Sequence[Quality]:
    if text is None:
        return QUALITIES
    known = {one.column: one for one in QUALITIES}
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise TableError(
            f"--columns {text} names {unknown[0] if unknown else 'nothing'}, which is no quality "
            f"metric; it takes a comma list of {', '.join(known)}."
        )
    return [known[name] for name in names]


def _why_empty(frame: pd.DataFrame, sources: str) -> str:
    reasons = dict.fromkeys(reason for _, reason in exclusions(frame))
    if len(exclusions(frame)) == len(frame):
        return f"none of the {len(frame)} runs of {sources} can be used ({'; '.join(reasons)})."
    return (
        f"no run of {sources} is evaluated: measure them with python -m scaling.evaluate "
        "RUNS_DIR/SWEEP."
    )


def _draw(found: QualityFound, folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True, parents=True)
        save_figures(drawings(found), folder)
    except OSError as error:
        remedy = "name another folder with --figures"
        raise cannot_write(folder, error.strerror, remedy) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.quality",
        description="How evaluated quality moves with n and k.",
    )
    parser.add_argument("source", nargs="+", help="sweep folder, table, wandb:ENTITY/PROJECT, ...")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="COLUMN", help="let runs differ in COLUMN"
    )
    parser.add_argument("--columns", help="comma list (default: all that are evaluated)")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--figures", type=Path, help="folder for quality_n.png and quality_k.png")
    return parser
