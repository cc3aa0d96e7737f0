"""Compare architectures at equal L0: `python -m analysis.equal_l0 SOURCE... --l0 32`.

Sparsity is an outcome for all but TopK and its kin, so each one's frontier of loss against
measured L0 is read at the L0 asked for. docs/equal_l0.md says how, and what the intervals hold.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.command import check_paths, command_line, print_lines, run, write_json
from analysis.counts import short_count
from analysis.errors import TableError
from analysis.files import cannot_write
from analysis.planning.quantities import count
from analysis.records.columns import DEFAULT_LOSS, LOSSES
from analysis.records.exclusions import with_dead
from analysis.records.load import check_runs, load_runs
from analysis.records.mixtures import SAME_FOR_ALL
from analysis.records.rejected import REJECTED
from analysis.report.plots.sparsity import frontiers, loss_at_l0
from analysis.report.plots.style import save_figures
from analysis.report.sections.sparsity import lines
from analysis.sparsity.cells import METHOD
from analysis.sparsity.comparison import Comparison, compare, comparison_json
from analysis.sparsity.series import ARCHITECTURE


@command_line
def equal_l0_command(argv: Sequence[str] | None = None) -> None:
    """Print the comparison; write its JSON and figures where asked."""
    options = _parser().parse_args(argv)
    check_paths(options)
    by, l0s = _words(options.by), _l0s(options.l0)
    allow = [name for name in by if name in SAME_FOR_ALL]
    allow += [word for text in options.allow for word in _words(text)]
    frame = load_runs(list(options.source), loss=options.loss, allow=(*allow, REJECTED))
    frame = with_dead(frame)
    check_runs(frame, allow)
    tokens = None if options.tokens is None else count(options.tokens, "--tokens")
    found = compare(frame, by=by, l0s=l0s, reference=options.reference, budget=tokens)
    if options.json is not None:
        write_json(options.json, comparison_json(found))
    if options.figures is not None:
        _draw(found, options.figures)
    print(f"Runs of {short_count(found.chosen.budget)} tokens, compared with {found.reference}.")
    print_lines(lines(found))
    print(f"\n{METHOD}")


def _draw(found: Comparison, folder: Path) -> None:
    figures = {"frontiers": frontiers(found), "loss_at_l0": loss_at_l0(found)}
    try:
        folder.mkdir(exist_ok=True, parents=True)
        save_figures(figures, folder)
    except OSError as error:
        remedy = "name another folder with --figures"
        raise cannot_write(folder, error.strerror, remedy) from error


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _l0s(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        l0s = [float(word) for word in _words(text)]
    except ValueError as error:
        raise TableError(f"--l0 {text} is no list of numbers; write --l0 16,32.") from error
    if not l0s or not all(0 < l0 < float("inf") for l0 in l0s):
        raise TableError(f"--l0 {text} must be above 0: latents active per token, such as 32.")
    return sorted(set(l0s))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.equal_l0",
        description="Compare architectures at equal L0, measured and not asked for.",
    )
    parser.add_argument("source", nargs="+", help="sweep folder, table, wandb:ENTITY/PROJECT, ...")
    parser.add_argument("--l0", help="comma list (default: up to three that most were measured at)")
    parser.add_argument("--by", default=ARCHITECTURE, help="columns compared (%(default)s)")
    parser.add_argument("--reference", help="what others are compared with (default: topk)")
    parser.add_argument("--tokens", help="budget of the runs compared (default: the commonest)")
    parser.add_argument("--loss", default=DEFAULT_LOSS, help=" or ".join(LOSSES))
    parser.add_argument(
        "--allow", action="append", default=[], metavar="COLUMN", help="let runs differ in COLUMN"
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--figures", type=Path, help="folder for frontiers.png and loss_at_l0.png")
    return parser


if __name__ == "__main__":
    run(equal_l0_command)
