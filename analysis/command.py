"""What the command lines share: exit codes, checks of options, results as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

from analysis.errors import TableError
from analysis.files import check_target, checked_path, replace_text
from analysis.uncertainty.clusters import WAYS, By

BAD_INPUT = 2
INTERRUPTED = 130
PIPE_CLOSED = 141
LEAST_REFITS = 100
MOST_REFITS = 100_000


class Command(Protocol):
    """Takes arguments (None: those of the process) and returns the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def command_line(action: Callable[[Sequence[str] | None], None]) -> Command:
    """The action as a command: 0, or 2 and the message on stderr where its input is of no use."""

    @wraps(action)
    def command(argv: Sequence[str] | None = None) -> int:
        try:
            action(argv)
        except TableError as error:
            print(f"error: {error}", file=sys.stderr)
            return BAD_INPUT
        return 0

    return command


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


def print_lines(lines: Iterable[str]) -> None:
    """One line each; nothing for none."""
    for line in lines:
        print(line)


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
