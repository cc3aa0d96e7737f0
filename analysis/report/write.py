"""One command from a sweep's records to its laws: `python -m analysis.report RUNS_DIR/SWEEP`.

Writes SWEEP/report/index.html (self-contained), fits.json and the figures as PNG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.command import BAD_INPUT, check_refits, describe, write_json
from analysis.errors import TableError
from analysis.records.load import DEFAULT_LOSS, load_runs, runs_table
from analysis.report import page, sections
from analysis.report.plots import frontier, losses, residuals
from analysis.study.comparison import comparison_json
from analysis.study.facts import costs, provenance, trained_tokens
from analysis.study.fitted import SCHEMA_VERSION, to_json
from analysis.study.outliers import outliers_json
from analysis.study.run_cautions import run_cautions
from analysis.study.study import Study, study_runs

_DPI = 160  # 1,180 pixels wide: sharp where a README shows it at 800


def main(argv: Sequence[str] | None = None) -> int:
    """Report on a sweep; returns the exit code (2: unusable input, said on stderr)."""
    options = _parser().parse_args(argv)
    try:
        check_refits(options.bootstrap)
        frame = load_runs(options.sweep, loss=options.loss)
        study = study_runs(
            runs_table(frame, options.loss), n_bootstrap=options.bootstrap, seed=options.seed
        )
        folder = write_report(study, frame, options.sweep)
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(result_text(study))
    for code, message in run_cautions(frame).items():
        print(f"  caution {code}: {message}")
    print(f"report: {folder / 'index.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description="Fit the laws of a sweep and write its page."
    )
    parser.add_argument("sweep", type=Path, help="folder of the sweep, RUNS_DIR/SWEEP")
    parser.add_argument("--bootstrap", type=int, default=1000, help="refits; 0: intervals from se")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument("--loss", default=DEFAULT_LOSS, help="normalized_mse or normalized_mse_ema")
    return parser


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


def write_report(study: Study, frame: pd.DataFrame, sweep: Path) -> Path:
    """Write report/ inside the sweep's folder and return its path."""
    folder = sweep / "report"
    drawings = {
        "loss_against_n": losses.loss_against_latents(study, _subject(provenance(frame))),
        "loss_against_tokens": losses.loss_against_tokens(study),
        "residuals": residuals.residuals(study),
        "frontier": frontier.frontier(frame),
    }
    try:
        folder.mkdir(exist_ok=True)
        html = page.page(f"Scaling laws: {sweep.name}", _body(study, frame, sweep.name, drawings))
        (folder / "index.html").write_text(html)
        for name, drawing in drawings.items():
            if drawing is not None:
                drawing.savefig(folder / f"{name}.png", dpi=_DPI, facecolor="white")
    except OSError as error:
        raise TableError(
            f"cannot write {folder} ({error.strerror}); make the folder of the sweep writable."
        ) from error
    write_json(folder / "fits.json", report_json(study, frame, sweep.name))
    return folder


def report_json(study: Study, frame: pd.DataFrame, name: str) -> dict[str, Any]:
    """The content of fits.json (docs/laws.md): every fit, every refusal, what they rest on."""
    fits = [fit for o in study.outcomes for fit in (o.tested, o.final) if fit is not None]
    if study.outliers is not None and study.outliers.without is not None:
        fits.append(study.outliers.without)
    return {
        "schema_version": SCHEMA_VERSION,
        "sweep": name,
        "n_runs": len(study.table),
        "headline": {"law": study.headline.law.name, "title": study.headline.title},
        "fits": [to_json(fit) for fit in fits],
        "not_fitted": [
            {"law": o.law.name, "title": o.title, "rows": rows, "reason": reason}
            for o in study.outcomes
            for rows, reason in o.refusals.items()
        ],
        "comparison": comparison_json(study),
        "outliers": outliers_json(study.outliers),
        "cautions": run_cautions(frame),
        "falling_pairs": [{**vars(pair), "share": pair.share} for pair in study.pairs],
        "dropped": [drop._asdict() for drop in study.table.dropped],
        "cost": costs(frame),
        "provenance": provenance(frame),
    }


def _body(
    study: Study, frame: pd.DataFrame, name: str, drawings: dict[str, Figure | None]
) -> Iterator[str]:
    facts, trained = provenance(frame), trained_tokens(frame, study.budget)
    yield page.heading(f"Scaling laws of sparse autoencoders: {name}", 1)
    yield page.paragraph(_subject(facts), "soft")
    yield from sections.summary(study)
    yield from sections.cautions(run_cautions(frame))
    yield page.figure(
        drawings["loss_against_n"],
        "Runs and laws at the common token budget. Open points were held out: solid lines "
        "predict them. Bands are 95% intervals of the headline law, without the noise of a "
        f"run. {sections.budget_note(study, trained)}",
    )
    yield page.heading("Loss and tokens")
    yield page.figure(
        drawings["loss_against_tokens"],
        "Runs against their token budget, for the k that have several, and the headline law.",
    )
    yield page.heading("Prediction of the largest n")
    yield from sections.held_out_runs(study)
    yield page.figure(drawings["residuals"], "Residuals of the headline law, held-out runs open.")
    yield page.heading("The forms compared")
    yield from sections.forms_compared(study)
    yield page.heading("Outliers")
    yield from sections.far_runs(study)
    yield page.heading("The laws, and what each may be used for")
    yield from sections.laws(study)
    yield page.heading("Frontier")
    yield page.figure(
        drawings["frontier"], "Faint points are runs that a cheaper run of the same k beats."
    )
    yield page.heading("Does loss fall as it should?")
    yield from sections.falling(study)
    yield page.heading("Runs excluded")
    yield from sections.excluded(study, len(frame))
    yield page.heading("Cost")
    yield from sections.cost(costs(frame))
    yield page.heading("Provenance")
    yield from sections.provenance(facts)


def _subject(facts: dict[str, Any]) -> str:
    models = ", ".join(map(str, facts["subject_model"])) or "planted data"
    layers = ", ".join(map(str, facts["layer"]))
    return f"Activations of {models}" + (f", after block {layers}" if layers else "")
