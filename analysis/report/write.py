"""One command from a sweep's records to its laws: `python -m analysis.report SOURCE`.

Writes index.html (self-contained), fits.json, parameters.csv and the figures as PNG into
SOURCE/report, or into `--out`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from analysis.command import (
    check_paths,
    check_refits,
    check_seed,
    command_line,
    parse_clusters,
    write_json,
)
from analysis.errors import TableError
from analysis.files import checked_path
from analysis.fitting.fit import METHODS
from analysis.records.columns import DEFAULT_LOSS, LOSSES
from analysis.records.load import load_runs
from analysis.report import page
from analysis.report.body import Drawings, body, drawings
from analysis.report.contents import Contents, contents
from analysis.report.fits_file import fits_json, parameters_csv
from analysis.study.fitted import FitOptions
from analysis.study.study import Study
from analysis.study.words import describe

_DPI = 160  # 1,180 pixels wide: sharp where a README shows it at 800


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    """Report on a sweep, and print what leads the page."""
    options = _parser().parse_args(argv)
    fit_options = _fit_options(options)
    checked_path(Path(options.source))
    folder = options.out or _default_folder(options.source)
    frame = load_runs(options.source, loss=options.loss, allow=options.allow)
    _check_folder(folder)
    name = options.name or _name_of(options.source)
    found = contents(frame, name=name, loss=options.loss, options=fit_options)
    write_report(found, folder)
    print(result_text(found.study))
    for code, message in found.cautions.items():
        print(f"  caution {code}: {message}")
    print(f"report: {folder / 'index.html'}")


def _fit_options(options: argparse.Namespace) -> FitOptions:
    """TableError for what can be told before any run is read."""
    check_paths(options)
    check_refits(options.bootstrap)
    check_seed(options.seed)
    clusters = parse_clusters(options.clusters)
    return FitOptions(options.bootstrap, options.seed, options.method, clusters)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description="Fit the laws of a sweep and write its page."
    )
    parser.add_argument(
        "source", help="RUNS_DIR/SWEEP, a table made by analysis.collect, or wandb:..."
    )
    parser.add_argument("--out", type=Path, help="folder of the report (default: SOURCE/report)")
    parser.add_argument("--name", help="of the sweep, as the page says it")
    parser.add_argument("--bootstrap", type=int, default=1000, help="refits; 0: intervals from se")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument(
        "--method", choices=METHODS, default=METHODS[0], help="default: %(default)s"
    )
    parser.add_argument("--clusters", help="runs that may share errors: n, seed, cell, or n,seed")
    parser.add_argument("--loss", default=DEFAULT_LOSS, help=" or ".join(LOSSES))
    parser.add_argument(
        "--allow", action="append", default=[], metavar="COLUMN", help="let runs differ in COLUMN"
    )
    return parser


def _default_folder(source: str) -> Path:
    """SWEEP/report beside its runs. TableError for a source that is no folder of a sweep."""
    folder = Path(source)
    if folder.is_dir() or not (folder.exists() or source.startswith("wandb:")):
        return folder / "report"
    raise TableError(f"{source} is no folder to write a report into; name one with --out FOLDER.")


def _name_of(source: str) -> str:
    return Path(source.removeprefix("wandb:")).resolve().stem


def result_text(study: Study) -> str:
    """The headline law with intervals and its held-out error, and the share of falling pairs."""
    lines = [
        f"loss falls with {pair.axis} in {pair.n_falling} of {pair.n_pairs} adjacent pairs"
        for pair in study.pairs
        if pair.n_pairs
    ]
    fitted = study.headline.best_known
    if fitted is None:
        refusals = [f"{o.title}: {why}" for o in study.outcomes for why in set(o.refusals.values())]
        return "\n".join([*lines, "no law can be fitted yet:", *(f"  {r}" for r in refusals)])
    return "\n".join([*lines, f"fitted on {fitted.rows}", describe(fitted)])


def write_report(found: Contents, folder: Path) -> None:
    """Page, figures and fits.json into `folder`, all of them or none; figures of an earlier report
    that these runs do not have are removed. TableError where it cannot be written."""
    figures = drawings(found)
    try:
        folder.mkdir(exist_ok=True, parents=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as beside:
            _write_all(found, figures, Path(beside))
            for file in sorted(Path(beside).iterdir()):  # renamed: takes no space, cannot fill up
                file.replace(folder / file.name)
        for name in (name for name, drawing in figures.items() if drawing is None):
            (folder / f"{name}.png").unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write_all(found: Contents, figures: Drawings, folder: Path) -> None:
    html = page.page(f"Scaling laws: {found.name}", body(found, figures))
    (folder / "index.html").write_text(html)
    (folder / "parameters.csv").write_text(parameters_csv(found))
    for name, drawing in figures.items():
        if drawing is not None:
            drawing.savefig(folder / f"{name}.png", dpi=_DPI, facecolor="white")
    write_json(folder / "fits.json", fits_json(found))


def _check_folder(folder: Path) -> None:
    """Before anything is fitted: TableError where the report could not be written."""
    try:
        folder.mkdir(exist_ok=True, parents=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> TableError:
    return TableError(
        f"cannot write {folder} ({error.strerror}); make it writable, free space, or name another "
        "folder with --out."
    )
