"""The next runs to buy: `python -m analysis.design FITS --target n_latents=64k,k=32,tokens=1B ...`.

Chooses, among the cells of --n x --k x --tokens and within a budget, the runs that narrow the
prediction at the targets most, and writes them as a sweep file for launch.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.command import check_paths, command_line, print_lines, run, write_json
from analysis.errors import TableError
from analysis.frontier import CONVENTION_HELP, convention_of
from analysis.laws.forms import Array
from analysis.planning.compute import CONVENTIONS, DEFAULT_CONVENTION
from analysis.planning.context import Context, read_context
from analysis.planning.cost import CoreSecondsCost, Cost, FlopsCost, measured_cost
from analysis.planning.design import MOST_K_SHARE, RunDesign, candidate_grid, design_runs
from analysis.planning.design_notes import candidate_note, recipe_notes
from analysis.planning.design_table import design_json, design_text
from analysis.planning.quantities import count, counts, grid
from analysis.planning.stored import StoredLaw, read_law
from analysis.planning.sweep_file import (
    SWEEPS,
    Cell,
    cells_of,
    check_like,
    check_sweep,
    sweep_text,
    write_sweep,
)
from analysis.records.load import load_runs

_MOST_SEEDS = 2**31
_MOST_REPLICATES = 100


@command_line
def design_command(argv: Sequence[str] | None = None) -> None:
    """Choose the runs, write them, and print what they would do."""
    options = _parser().parse_args(argv)
    _check_options(options)
    # Which runs to add is a question of independent errors: clusters have too few directions.
    stored = read_law(options.fits, law=options.law, rows=options.rows, clustered=False)
    there = _runs_there(options.runs, stored.loss)
    context = read_context(options.fits)
    cost, levels, share = _cost(options, stored, there), _levels(options), options.most_k_share
    candidates = candidate_grid(*levels, most_k_share=share)
    design = design_runs(
        *(stored, candidates, _targets(options.target), cost, _budget(options)),
        replicates=options.replicates,
    )
    cells = cells_of(design.runs, there, options.first_seed)
    if options.sweep is not None:
        write_sweep(options.sweep, _sweep(options, design, cells))
    if options.json is not None:
        write_json(options.json, design_json(design, cells))
    print(design_text(design, cells))
    print(candidate_note(levels, share, candidates, there))
    print_lines(context.lines(design.targets.get("tokens", np.zeros(0)).tolist()))
    if isinstance(cost, CoreSecondsCost):
        print(f"cost as {cost.n_runs} runs took it, {cost.rms_error:.0%} rms about the formula")
    print_lines(_about_the_sweep(options, context, stored, there))


def _about_the_sweep(
    options: argparse.Namespace, context: Context, stored: StoredLaw, there: pd.DataFrame | None
) -> Iterator[str]:
    """How to launch what was written, and what it may not know of runs that exist."""
    if options.sweep is not None:
        yield f"sweep: {options.sweep}: {_launch(options.sweep)}"
        if options.like is None:
            yield from recipe_notes(context.recipe, stored.d_model)
    if options.like is not None and there is None:
        yield (
            f"warning: runs that exist in {options.like} are unknown, so seeds begin at "
            f"{options.first_seed} and may name runs that are there already; give --runs SWEEP, or "
            "a --first-seed above theirs."
        )


def _check_options(options: argparse.Namespace) -> None:
    """TableError for what can be told before runs are chosen, so that nothing is half written."""
    check_paths(options)
    if options.sweep is not None:
        check_sweep(options.sweep)
    if options.like is not None:
        check_like(options.like, options.sweep)
    if not 0 <= options.first_seed < _MOST_SEEDS:
        raise TableError(
            f"--first-seed {options.first_seed} is no seed; give 0 or more, below {_MOST_SEEDS}."
        )
    if not 1 <= options.replicates <= _MOST_REPLICATES:
        raise TableError(
            f"--replicates {options.replicates} runs of one cell are none or too many; give 1 to "
            f"{_MOST_REPLICATES}."
        )


def _runs_there(source: Path | None, loss: str) -> pd.DataFrame | None:
    # Also of a sweep of which much diverged: no law is fitted here, and every run has its seed.
    return None if source is None else load_runs(source, loss=loss, allow=("rejected",))


def _cost(options: argparse.Namespace, stored: StoredLaw, there: pd.DataFrame | None) -> Cost:
    if options.budget_flops is not None:
        return FlopsCost(convention_of(stored, options.convention, options.d_model))
    if there is None:
        raise TableError(
            "--budget-core-hours needs --runs SWEEP, whose runs say how long such runs take; or "
            "give --budget-flops."
        )
    return measured_cost(there)


def _budget(options: argparse.Namespace) -> float:
    if options.budget_flops is not None:
        return count(options.budget_flops, "--budget-flops")
    return 3600.0 * count(options.budget_core_hours, "--budget-core-hours")


def _levels(options: argparse.Namespace) -> tuple[list[float], list[float], list[float]]:
    n, k, tokens = (counts(getattr(options, name), f"--{name}") for name in ("n", "k", "tokens"))
    broken = [value for value in (*n, *k, *tokens) if value != round(value)]
    if broken:
        raise TableError(f"{broken[0]:g} is no whole number; sizes and tokens of runs are.")
    return n, k, tokens


def _targets(words: Sequence[str]) -> dict[str, Array]:
    """Each word is one target, NAME=VALUE,NAME=VALUE,...; axis -> [T]."""
    targets = [grid(word.split(",")) for word in words]
    axes = set(targets[0])
    if any(set(target) != axes for target in targets):
        raise TableError("the targets name different axes; give n_latents, k and tokens in each.")
    return {axis: np.concatenate([target[axis] for target in targets]) for axis in targets[0]}


def _sweep(options: argparse.Namespace, design: RunDesign, cells: Sequence[Cell]) -> str:
    targets = " and ".join(word.replace(",", ", ") for word in options.target)
    name = options.name or (None if options.like else options.sweep.stem)
    return sweep_text(
        cells,
        question=f"what narrows the prediction at {targets}?",
        cost=f"{design.cost:.3g} {design.unit} (estimated)",
        name=name,
        like=options.like,
        feeds=f"python -m analysis.report RUNS_DIR/{name or options.like}",
    )


def _launch(path: Path) -> str:
    """The command that runs it: Hydra finds sweep files in folders named sweeps."""
    folder = path.resolve().parent
    if folder.name != "sweeps":
        return f"move it into sweeps/, then python launch.py -m sweeps={path.stem}"
    elsewhere = folder != SWEEPS
    where = f"--config-dir {folder.parent} " if elsewhere else ""
    return f"python launch.py -m {where}sweeps={path.stem} (dry_run=true shows its cost)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.design", description="Choose the next runs to train."
    )
    parser.add_argument("fits", type=Path, help="a report's fits.json, or JSON of analysis.fit")
    parser.add_argument(
        "--target",
        action="append",
        required=True,
        metavar="n_latents=..,k=..,tokens=..",
        help="what is to be predicted; may be given several times",
    )
    for name, of in (("n", "latents"), ("k", "k"), ("tokens", "token budgets")):
        parser.add_argument(f"--{name}", required=True, help=f"comma list of candidate {of}")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--budget-flops", help="training FLOPs of all new runs together")
    budget.add_argument("--budget-core-hours", help="as the runs of --runs took them")
    parser.add_argument(
        "--convention", default=DEFAULT_CONVENTION, choices=CONVENTIONS, help=CONVENTION_HELP
    )
    parser.add_argument("--d-model", type=int, help="default: what fits.json says")
    parser.add_argument("--runs", type=Path, help="the sweep's folder: seeds and times taken")
    parser.add_argument("--replicates", type=int, default=1, help="most runs of one cell")
    parser.add_argument("--first-seed", type=int, default=0, help="lowest seed of a new run")
    parser.add_argument(
        "--most-k-share", type=float, default=MOST_K_SHARE, help="most k / n of a candidate"
    )
    parser.add_argument("--sweep", type=Path, help="NAME.yaml to write, in sweeps/")
    parser.add_argument("--like", help="sweep of sweeps/ whose recipe the new runs take")
    parser.add_argument("--name", help="folder of the new runs (default: that of --like)")
    parser.add_argument("--law", help="law of fits.json, by name or title (default: headline)")
    parser.add_argument("--rows", help="words of the fit's rows (default: the fit on all runs)")
    parser.add_argument("--json", type=Path, help="where to write the runs")
    return parser


if __name__ == "__main__":
    run(design_command)
