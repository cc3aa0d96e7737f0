"""What the command lines share: exit codes, checks of options, results as text and JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, cast

from analysis.errors import TableError
from analysis.files import check_target, checked_path, replace_text
from analysis.fitting.bounds import bounds
from analysis.study.fitted import FittedLaw
from analysis.uncertainty.clusters import WAYS, By

BAD_INPUT = 2
INTERRUPTED = 130
PIPE_CLOSED = 141
LEAST_REFITS = 100
MOST_REFITS = 100_000


def run(command: Callable[[], int]) -> NoReturn:
    """End the process with the command's exit code; 130 and one line after Ctrl-C, and in silence
    (as the pipe's end would have it, 141) where what reads the output has closed it."""
    try:
        code = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("error: interrupted; what was being written is whole or not there.", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        # Python flushes once more at its end, which would fail and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = PIPE_CLOSED
    raise SystemExit(code)


def check_paths(options: argparse.Namespace) -> None:
    """Before anything is computed: TableError for a path that is none, or a result's that cannot
    be written (`--json`)."""
    for value in vars(options).values():
        if isinstance(value, Path):
            checked_path(value)
    if getattr(options, "json", None) is not None:
        check_target(options.json)


def check_refits(n_refits: int) -> None:
    if n_refits != 0 and n_refits < LEAST_REFITS:
        raise TableError(
            f"--bootstrap {n_refits} is too few for the ends of a 95% interval; use at least "
            f"{LEAST_REFITS}, or 0 for intervals from the standard errors."
        )

    if n_refits > MOST_REFITS:
        raise TableError(
            f"--bootstrap {n_refits} is more than {MOST_REFITS:,} refits, which no interval needs; "
            f"use {MOST_REFITS} or fewer."
        )


def check_seed(seed: int) -> None:
    if seed < 0:
        raise TableError(f"--seed {seed} is negative; give 0 or more.")


def parse_clusters(text: str | None) -> By | tuple[By, ...] | None:
    """`n` or `n,seed` as typed. TableError for a way of clustering that is not known."""
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(","))
    unknown = [word for word in words if word not in WAYS]
    if unknown:
        raise TableError(f"clusters {unknown[0]!r} are not known; give one of {', '.join(WAYS)}.")
    ways = cast("tuple[By, ...]", words)
    return ways[0] if len(ways) == 1 else ways


def describe(fitted: FittedLaw) -> str:
    """The law with its intervals, fit and held-out error, as lines for a terminal."""
    fit = fitted.fit
    sizes = ", ".join(f"{name} = {value:g}" for name, value in fit.law.reference.items())
    lines = [f"{fitted.title}: {fit.law.formula}" + (f"  ({sizes})" if sizes else "")]
    intervals = fitted.ci95
    for name, value in fit.law.parameters.items():
        low, high = intervals[name]
        shown = "0 (none)" if name == "E" and fitted.no_floor else f"{value:.5g}"
        lines.append(f"  {name:<7}{shown:>12}   95% [{low:.4g}, {high:.4g}]")
    lines.append(f"  rms log residual {fit.rms_log_residual:.2%} over {len(fit.table)} runs")
    lines += [f"  {fit.method} fit; intervals: {fitted.ci95_method}"]
    lines += [f"  at a bound: {message}" for message in bounds(fit).values()]
    lines += [f"  {holdout_line(fitted)}"] if fitted.holdout else []
    lines += [f"  warning {code}: {message}" for code, message in fitted.warnings.items()]
    return "\n".join(lines)


def print_lines(lines: Iterable[str]) -> None:
    """One line each; nothing for none."""
    for line in lines:
        print(line)


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
        TableError: the folder is missing or not writable, `path` is no regular file, or a number
            is none or infinite, which JSON cannot say.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise TableError(
            f"{path} is not written: the result has a number that is infinite or none ({error}); "
            "ask for points nearer to the runs fitted."
        ) from error
    replace_text(path, text + "\n")
