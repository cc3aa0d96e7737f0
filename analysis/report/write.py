"""One command from a sweep's records to its laws: `python -m analysis.report SOURCE`.

Writes index.html (self-contained), fits.json, parameters.csv and the figures as PNG into
SOURCE/report, or into `--out`. Of runs that are compared and not fitted (several architectures,
levels of a key, no k) it writes comparison.json in place of the fits.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.command import (
    check_paths,
    check_refits,
    check_seed,
    command_line,
    parse_clusters,
    print_lines,
    write_json,
)
from analysis.errors import TableError
from analysis.files import cannot_write, checked_path
from analysis.fitting.fit import METHODS
from analysis.quality.found import quality_json
from analysis.records.columns import DEFAULT_LOSS, LOSSES
from analysis.report import page
from analysis.report.body import body, drawings
from analysis.report.compared import Compared, compared
from analysis.report.compared import body as comparison_body
from analysis.report.compared import drawings as comparison_drawings
from analysis.report.compared import text as comparison_text
from analysis.report.contents import Contents, contents
from analysis.report.fits_file import fits_json, parameters_csv
from analysis.report.plots.style import save_figures
from analysis.report.read import read_sweep
from analysis.study.fitted import FitOptions
from analysis.study.study import Study
from analysis.study.words import describe

_OURS = (
    *("fits.json", "parameters.csv", "comparison.json", "loss_against_n.png"),
    *("loss_against_tokens.png", "residuals.png", "residual_maps.png", "frontier.png"),
    *("quality.json", "quality_n.png", "quality_k.png"),
    *("frontiers*.png", "loss_at_l0*.png", "ablation_*.png"),
)
"""All that reports ever write beside their page."""


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    """Report on a sweep, and print what leads the page."""
    options = _parser().parse_args(argv)
    fit_options = _fit_options(options)
    checked_path(Path(options.source))
    folder = options.out or _default_folder(options.source)
    read = read_sweep(options.source, loss=options.loss, allow=options.allow)
    _check_folder(folder)
    name = options.name or _name_of(options.source)
    if read.is_compared:
        _write_comparison(compared(read.frame, name, read.ablations), folder)
    else:
        _write_laws(contents(read.frame, name=name, loss=options.loss, options=fit_options), folder)
    print(f"report: {folder / 'index.html'}")


def _write_laws(found: Contents, folder: Path) -> None:
    figures = drawings(found)
    html = page.page(f"Scaling laws: {found.name}", body(found, figures))
    texts = {"index.html": html, "parameters.csv": parameters_csv(found)}
    objects = {"fits.json": fits_json(found)}
    if not found.quality.is_empty:
        objects["quality.json"] = quality_json(found.quality)
    write_report(texts, figures, objects, folder)
    print(result_text(found.study))
    for code, message in found.cautions.items():
        print(f"  caution {code}: {message}")


def _write_comparison(found: Compared, folder: Path) -> None:
    figures = comparison_drawings(found)
    html = page.page(f"Autoencoders compared: {found.name}", comparison_body(found, figures))
    write_report({"index.html": html}, figures, {"comparison.json": found.json()}, folder)
    print_lines(comparison_text(found))


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


def write_report(
    texts: Mapping[str, str],
    figures: Mapping[str, Figure | None],
    objects: Mapping[str, dict[str, Any]],
    folder: Path,
) -> None:
    """Page, figures and JSON into `folder`, all of them or none; what an earlier report had that
    these runs do not is removed. TableError where it cannot be written."""
    try:
        folder.mkdir(exist_ok=True, parents=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as beside:
            _write_all(texts, figures, objects, Path(beside))
            written = sorted(Path(beside).iterdir())
            for file in written:  # renamed: takes no space, cannot fill up
                file.replace(folder / file.name)
        kept = {file.name for file in written}
        for file in (file for pattern in _OURS for file in folder.glob(pattern)):
            if file.name not in kept:
                file.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write_all(
    texts: Mapping[str, str],
    figures: Mapping[str, Figure | None],
    objects: Mapping[str, dict[str, Any]],
    folder: Path,
) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)
    save_figures(figures, folder)
    for name, value in objects.items():
        write_json(folder / name, value)


def _check_folder(folder: Path) -> None:
    """Before anything is fitted: TableError where the report could not be written."""
    try:
        folder.mkdir(exist_ok=True, parents=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> TableError:
    remedy = "make it writable, free space, or name another folder with --out"
    return cannot_write(folder, error.strerror, remedy)
