"""The command line of `python -m analysis.fit`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.errors import TableError
from analysis.fitted import FittedLaw, fit_table, to_json
from analysis.holdout import rows_matching
from analysis.laws import LAWS
from analysis.table import read_table

BAD_INPUT = 2
LEAST_REFITS = 100


def fit_command(argv: Sequence[str] | None = None) -> int:
    """Fit a law to a CSV table; returns the exit code (2: unusable input, said on stderr)."""
    options = _parser().parse_args(argv)
    try:
        _fit(options)
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _fit(options: argparse.Namespace) -> None:
    check_refits(options.bootstrap)
    if options.seed < 0:
        raise TableError(f"--seed {options.seed} is negative; give 0 or more.")
    table = read_table(options.table, loss=options.loss)
    held_out = None if options.holdout is None else rows_matching(options.holdout, table)
    fitted = fit_table(
        LAWS[options.law],
        table,
        held_out=held_out,
        n_bootstrap=options.bootstrap,
        seed=options.seed,
        rows="all rows" if options.holdout is None else f"rows without {options.holdout}",
    )
    if options.json is not None:
        write_json(options.json, to_json(fitted))
    print(describe(fitted))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.fit", description="Fit a scaling law to a table of runs."
    )
    parser.add_argument("--law", required=True, choices=sorted(LAWS), help="which law")
    parser.add_argument("--table", required=True, type=Path, help="CSV, one row per run")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--holdout", help="rows to predict and not fit, such as 'n>65536'")
    parser.add_argument("--bootstrap", type=int, default=1000, help="refits; 0: intervals from se")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap, 0 or more")
    parser.add_argument("--loss", help="loss column (default: normalized_mse, else loss)")
    return parser


def check_refits(n_refits: int) -> None:
    if n_refits != 0 and n_refits < LEAST_REFITS:
        raise TableError(
            f"--bootstrap {n_refits} is too few for the ends of a 95% interval; use at least "
            f"{LEAST_REFITS}, or 0 for intervals from the standard errors."
        )


def describe(fitted: FittedLaw) -> str:
    """The law with its intervals, fit and held-out error, as lines for a terminal."""
    fit = fitted.fit
    sizes = ", ".join(f"{name} = {value:g}" for name, value in fit.law.reference.items())
    lines = [f"{fitted.title}: {fit.law.formula}" + (f"  ({sizes})" if sizes else "")]
    intervals = fitted.ci95
    for name, value in fit.law.parameters.items():
        low, high = intervals[name]
        lines.append(f"  {name:<7}{value:>12.5g}   95% [{low:.4g}, {high:.4g}]")
    lines.append(f"  rms log residual {fit.rms_log_residual:.2%} over {len(fit.table)} runs")
    lines += [f"  {holdout_line(fitted)}"] if fitted.holdout else []
    lines += [f"  warning {code}: {message}" for code, message in fitted.warnings.items()]
    return "\n".join(lines)


def holdout_line(fitted: FittedLaw) -> str:
    held = fitted.holdout
    if held is None:
        return "nothing held out"
    return (
        f"held out: {len(held.table)} runs, rms log error {held.rms_log:.2%}, worst "
        f"{held.worst_log:.2%}, {held.in_pi95} of {len(held.table)} in their 95% prediction "
        "intervals"
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write all of it or nothing; a link is followed, and a device is never replaced by a file.

    Raises:
        TableError: the folder is missing or not writable, or `path` is no regular file.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise TableError(f"cannot write {path}: it is no regular file; give another path.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TableError(
            f"cannot write {path} ({error.strerror}); give a path in an existing, writable folder."
        ) from error
