"""The best n and D for a budget: `python -m analysis.frontier FITS --flops 1e15,1e16 --k 16,32`.

FITS is the fits.json of a report, or the JSON of `python -m analysis.fit` with --d-model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.command import check_paths, command_line, print_lines, run, write_json
from analysis.errors import TableError
from analysis.planning.compute import CONVENTIONS, DEFAULT_CONVENTION, Convention
from analysis.planning.context import read_context
from analysis.planning.frontier import DEFAULT_EXCESS, Frontier, default_budgets, frontier
from analysis.planning.frontier_table import frontier_json, frontier_text, refusals
from analysis.planning.quantities import count, counts
from analysis.planning.stored import StoredLaw, read_law

_MOST_D_MODEL = 10**9
CONVENTION_HELP = "of FLOPs a token: sparse 2 n d + 8 k d (default), or dense 12 n d"


@command_line
def frontier_command(argv: Sequence[str] | None = None) -> None:
    """Print both frontiers of a stored law."""
    options = _parser().parse_args(argv)
    check_paths(options)
    found = _frontier(options)
    context = read_context(options.fits)
    if not found.points:
        raise TableError(" ".join(refusals(found)))
    if options.json is not None:
        write_json(options.json, frontier_json(found))
    print(frontier_text(found))
    print_lines(context.lines([point.tokens.value for point in found.points]))


def _frontier(options: argparse.Namespace) -> Frontier:
    stored = read_law(options.fits, law=options.law, rows=options.rows)
    convention = convention_of(stored, options.convention, options.d_model)
    flops = counts(options.flops, "--flops") if options.flops else None
    return frontier(
        stored,
        flops or default_budgets(stored, convention),
        counts(options.k, "--k") if options.k else default_ks(stored),
        convention,
        excess=options.excess,
        n_range=_range(options.n_range) if options.n_range else None,
    )


def convention_of(stored: StoredLaw, name: str, d_model: int | None) -> Convention:
    """TableError where neither the file nor the user says d_model, or says none that can be."""
    if d_model is not None and not 0 < d_model < _MOST_D_MODEL:
        raise TableError(
            f"--d-model {d_model} is no width of activations; give the sweep's, above 0."
        )
    width = stored.d_model if d_model is None else d_model
    if width is None:
        raise TableError(
            "this file does not say the d_model of its autoencoders, which FLOPs need; give "
            "--d-model (a report's fits.json says it)."
        )
    return Convention(name, width)


def default_ks(stored: StoredLaw) -> list[float]:
    """The smallest, the middle and the largest k fitted. TableError where the file says none."""
    if "k" not in stored.ranges:
        raise TableError("the fit does not say its range of k; give --k.")
    low, high = stored.ranges["k"]
    middle = (low * high) ** 0.5
    return sorted({low, float(round(middle)), high})


def _range(words: str) -> tuple[float, float]:
    ends = [count(part, "--n-range") for part in words.split(",")]
    if len(ends) != 2:
        raise TableError(f"--n-range {words!r} is no range; write LOW,HIGH.")
    return ends[0], ends[1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.frontier",
        description="Best n and D for budgets of FLOPs: the lowest loss, and near convergence.",
    )
    parser.add_argument("fits", type=Path, help="a report's fits.json, or JSON of analysis.fit")
    parser.add_argument("--flops", help="training FLOPs, 1e15,1e16 (default: around the runs')")
    parser.add_argument("--k", help="comma list (default: smallest, middle and largest fitted)")
    parser.add_argument(
        "--convention", default=DEFAULT_CONVENTION, choices=CONVENTIONS, help=CONVENTION_HELP
    )
    parser.add_argument("--d-model", type=int, help="default: what fits.json says")
    parser.add_argument(
        "--excess", type=float, default=DEFAULT_EXCESS, help="over the limit of endless training"
    )
    parser.add_argument("--n-range", help="LOW,HIGH: where sizes are looked for")
    parser.add_argument("--law", help="law of fits.json, by name or title (default: headline)")
    parser.add_argument("--rows", help="words of the fit's rows (default: the fit on all runs)")
    parser.add_argument("--json", type=Path, help="where to write both tables")
    return parser


if __name__ == "__main__":
    run(frontier_command)
