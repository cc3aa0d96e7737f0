"""Fit a law to a table of runs: `python -m analysis.fit --law NAME --table FILE --json OUT`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.command import (
    check_paths,
    check_refits,
    check_seed,
    command_line,
    parse_clusters,
    run,
    write_json,
)
from analysis.errors import TableError
from analysis.fitting.fit import METHODS
from analysis.judgement.holdout import rows_matching
from analysis.judgement.settled import select_converged
from analysis.laws import LAWS
from analysis.records.load import read_runs
from analysis.records.table import RunTable
from analysis.study.fitted import fit_table, to_json
from analysis.study.words import describe
from analysis.uncertainty.profile import floor_intervals


@command_line
def fit_command(argv: Sequence[str] | None = None) -> None:
    """Fit a law to a table of runs, print it, and write its JSON."""
    options = _parser().parse_args(argv)
    check_paths(options)
    check_refits(options.bootstrap)
    check_seed(options.seed)
    law = LAWS[options.law]
    allow = [word.strip() for text in options.allow for word in text.split(",")]
    sparsity = "l0" if options.k == "l0" else "k"
    how = {"loss": options.loss, "response": law.response, "sparsity": sparsity}
    table = read_runs(options.table, allow=allow, **how)
    table = select_converged(table).table if options.converged else table
    table = _of_k(table, options.k) if isinstance(options.k, float) else table
    held_out = None if options.holdout is None else rows_matching(options.holdout, table)
    fitted = fit_table(
        law,
        table,
        held_out=held_out,
        n_bootstrap=options.bootstrap,
        seed=options.seed,
        method=options.method,
        clusters=parse_clusters(options.clusters),
        rows="all rows" if options.holdout is None else f"rows without {options.holdout}",
    )
    floors = floor_intervals(fitted.fit) if options.floors else []
    if options.json is not None:
        write_json(options.json, {**to_json(fitted), "floors": [f.json() for f in floors]})
    print("\n".join([describe(fitted), *(f"  {floor.text}" for floor in floors)]))


def _of_k(table: RunTable, k: float) -> RunTable:
    if k not in table.points["k"]:
        levels = ", ".join(f"{level:g}" for level in np.unique(table.points["k"]))
        raise TableError(f"--k {k:g} leaves no run; the table has k = {levels}.")
    return table.select(table.points["k"] == k)


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
    parser.add_argument("--loss", help="column fitted (default: normalized_mse, else loss)")
    parser.add_argument("--converged", action="store_true", help="only runs shown converged")
    parser.add_argument(
        "--method", choices=METHODS, default=METHODS[0], help="default: %(default)s"
    )
    parser.add_argument("--floors", action="store_true", help="profile intervals of the floor")
    parser.add_argument("--clusters", help="runs that may share errors: n, seed, cell, or n,seed")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="COLUMN", help="may mix, or: rejected"
    )
    parser.add_argument(
        "--k", type=_k_or_l0, help="fit the runs of this k alone; l0: take measured L0 as k"
    )
    return parser


def _k_or_l0(text: str) -> float | str:
    return text if text == "l0" else float(text)


if __name__ == "__main__":
    run(fit_command)
