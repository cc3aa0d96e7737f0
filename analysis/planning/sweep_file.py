"""Runs as a sweep file that launch.py runs: cells of `sweep.points`, each with a seed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.files import check_target, replace_text
from analysis.planning.design import NewRun
from analysis.records.columns import SAME_BUDGET, numbers
from analysis.records.plan_file import read_plan

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
WRITTEN_BY = "# Written by python -m analysis.design"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Cell:
    """A run as the launcher takes it: whole numbers and a seed."""

    n_latents: int
    k: int
    tokens: int
    seed: int

    def line(self) -> str:
        values = ", ".join(f"{name}: {value}" for name, value in vars(self).items())
        return f"    - {{{values}}}"


def cells_of(
    runs: Iterable[NewRun], there: pd.DataFrame | None = None, first_seed: int = 0
) -> list[Cell]:
    """The runs with the lowest seeds not yet taken at their cell, from `first_seed`.

    `there` are runs that exist already, as `load_runs` gives them, also those that no law is fitted
    to: a second run of the same cell and seed would be the same run, diverge as it did, and tell
    nothing.
    """
    taken = _taken(there)
    cells: list[Cell] = []
    for run in runs:
        n, k, tokens = (round(value) for value in (run.n, run.k, run.tokens))
        used = {
            cell.seed
            for cell in [*taken, *cells]
            if (cell.n_latents, cell.k) == (n, k) and _same_budget(cell.tokens, tokens)
        }
        seed = next(s for s in range(first_seed, first_seed + len(used) + 1) if s not in used)
        cells.append(Cell(n, k, tokens, seed))
    return cells


def _same_budget(one: int, other: int) -> bool:
    return abs(one / other - 1.0) < SAME_BUDGET


def _taken(there: pd.DataFrame | None) -> list[Cell]:
    if there is None:
        return []
    cells: list[Cell] = []
    # A run that broke off trained less than was asked; whole batches are less than was asked too.
    for tokens in ("tokens_requested", "tokens"):
        names = ("n_latents", "k", tokens, "seed")
        rows = np.column_stack([numbers(there, name) for name in names])
        known = np.isfinite(rows).all(axis=1)  # a record that cannot be read names no cell
        cells += [Cell(*row) for row in rows[known].astype(int).tolist()]
    # Runs that have yet to end have no result: what they are to be is in their plan.
    unfinished = there.loc[~np.isfinite(numbers(there, "n_latents"))]
    planned = (_planned(str(folder)) for folder in unfinished["folder"])
    return cells + [cell for cell in planned if cell is not None]


def _planned(folder: str) -> Cell | None:
    """The cell of the plan in a run's folder; None where there is none to read."""
    plan = read_plan(folder)
    try:
        sizes = plan["autoencoder"]
        return Cell(sizes["n_latents"], sizes["k"], plan["tokens_requested"], plan["train"]["seed"])
    except (KeyError, TypeError):
        return None


def sweep_text(
    cells: Sequence[Cell],
    *,
    question: str,
    cost: str,
    name: str | None,
    like: str | None,
    feeds: str,
) -> str:
    """The YAML. `like` is a sweep of sweeps/ whose recipe, activations and, without a `name`,
    folder the runs take; without it they take the defaults of conf/."""
    for word, option in ((name, "--name"), (like, "--like")):
        if word is not None:
            _check_name(word, option)
    lines = [
        "# @package _global_",
        "#",
        WRITTEN_BY,
        f"# Question: {' '.join(question.split())}",  # a line break would end the comment
        f"# Runs:     {len(cells)}",
        f"# Cost:     {cost}",
        f"# Feeds:    {feeds}",
        *(["defaults:", f"  - {like}", "  - _self_", ""] if like else []),
        *([f"sweep_name: {name}", ""] if name else []),
        "sweep:",
        "  where: null",
        "  points:",
        *(cell.line() for cell in cells),
    ]
    # The lists of the sweep it is like would multiply the cells.
    lines += ["", "hydra:", "  sweeper:", "    params: null"] if like else []
    return "\n".join(lines) + "\n"


def check_sweep(path: Path) -> None:
    """Whether `write_sweep` would take `path`, to be asked before the runs are chosen.

    Raises:
        TableError: it holds a sweep that was written by hand, is no NAME.yaml, or cannot be
            written.
    """
    check_target(path)
    if path.exists() and not _written_here(path):
        raise TableError(
            f"{path} exists and was not written by this command; give another path for --sweep."
        )
    if path.suffix != ".yaml" or not _NAME.fullmatch(path.stem):
        raise TableError(f"--sweep {path} is no sweep file; end it in NAME.yaml.")


def _written_here(path: Path) -> bool:
    try:
        return WRITTEN_BY in path.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def check_like(like: str, path: Path | None) -> None:
    """Whether `like` names a sweep whose recipe the sweep at `path` can take.

    It may be one of sweeps/, or lie beside `path`. TableError for none, and for `path` itself.
    """
    _check_name(like, "--like")
    beside = [] if path is None else [path.resolve().parent]
    if path is not None and path.stem == like:
        raise TableError(
            f"--like {like} is the sweep that --sweep {path} writes, which cannot be like itself; "
            "give the sweep of the runs that are there, or another name for --sweep."
        )
    folders = [SWEEPS, *beside]
    if not any((folder / f"{like}.yaml").is_file() for folder in folders):
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise TableError(f"--like {like} is no sweep of sweeps/; there are {', '.join(known)}.")


def _check_name(word: str, option: str) -> None:
    if not _NAME.fullmatch(word):
        raise TableError(
            f"{option} {word!r} is no name of a sweep; use letters, digits, _ . and -."
        )


def write_sweep(path: Path, text: str) -> None:
    """Write it whole. TableError as `check_sweep`."""
    check_sweep(path)
    replace_text(path, text)
