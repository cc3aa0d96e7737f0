"""The page of a report, from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from matplotlib.figure import Figure

from analysis.report import page
from analysis.report.contents import CONVENTION, Contents
from analysis.report.plots import frontier, losses, residual_maps, residuals
from analysis.report.plots import quality as quality_plots
from analysis.report.sections import (
    compute,
    forms,
    judgement,
    laws,
    prediction,
    quality,
    runs,
    summary,
)

Drawings = Mapping[str, Figure | None]


def drawings(found: Contents) -> dict[str, Figure | None]:
    """Every figure by the name of its file; None where the runs do not allow it."""
    study = found.study
    return {
        "loss_against_n": losses.loss_against_latents(study, found.subject),
        "loss_against_tokens": losses.loss_against_tokens(study),
        "residuals": residuals.residuals(study),
        "residual_maps": residual_maps.residual_maps(study.judged.residual_maps)
        if study.judged
        else None,
        "frontier": frontier.frontier(found.frame, found.frontier, f"flops_{CONVENTION}"),
        **quality_plots.drawings(found.quality),
    }


def body(found: Contents, figures: Drawings) -> Iterator[str]:
    yield page.heading(f"Scaling laws of sparse autoencoders: {found.name}", 1)
    yield page.paragraph(found.subject, "soft")
    yield from _findings(found, figures)
    yield from _predictions(found, figures)
    yield from _trust(found, figures)
    yield page.heading("The laws, and what each may be used for")
    yield from laws.laws(found.study)
    yield from _compute(found, figures)
    yield from quality.quality(found.quality, figures)
    yield from _runs(found)


def _findings(found: Contents, figures: Drawings) -> Iterator[str]:
    yield from summary.summary(found.study)
    yield from summary.cautions(found.cautions)
    yield page.figure(
        figures["loss_against_n"],
        f"Runs {found.study.budgets_in_words}, and laws. Open points were held out: solid lines "
        "predict them. Bands are 95% intervals of the headline law, without the noise of a "
        f"run. {runs.budget_note(found.study, found.trained)}",
    )
    yield page.heading("Loss and tokens")
    yield page.figure(
        figures["loss_against_tokens"],
        "Runs against their token budget, for the k that have several, and the headline law.",
    )


def _predictions(found: Contents, figures: Drawings) -> Iterator[str]:
    yield page.heading("Prediction of what was held out")
    yield from prediction.held_out_runs(found.study, found.frame)
    yield from forms.held_out_tests(found.study)
    yield page.figure(figures["residuals"], "Residuals of the headline law, held-out runs open.")
    yield page.heading("The forms compared")
    yield from forms.forms_compared(found.study)
    yield from forms.beyond(found.study)


def _trust(found: Contents, figures: Drawings) -> Iterator[str]:
    study = found.study
    yield page.heading("How far the headline law can be trusted")
    yield from judgement.judged(study)
    yield page.figure(
        figures["residual_maps"],
        "Loss above the headline law's fit on all runs, in percent, at each n and k.",
    )
    yield page.heading("Floors", 3)
    yield from judgement.floors(study)
    yield page.heading("What these runs can determine", 3)
    yield from judgement.design(study)
    yield page.heading("Outliers", 3)
    yield from judgement.far_runs(study)
    yield page.heading("Does loss fall as it should?", 3)
    yield from summary.falling(study)


def _compute(found: Contents, figures: Drawings) -> Iterator[str]:
    yield page.heading("What to train for a budget of compute")
    yield page.figure(
        figures["frontier"],
        "Faint points are runs that a cheaper run of the same k beats. Crosses are what the law "
        "says of the best sizes for a budget.",
    )
    yield from compute.frontier(found.frontier, found.frontier_refusal)
    yield from compute.budgets(found.study)


def _runs(found: Contents) -> Iterator[str]:
    yield page.heading("Runs excluded")
    yield from runs.excluded(found.study, len(found.frame))
    yield page.heading("Cost")
    yield from runs.cost(found.costs)
    yield page.heading("Provenance")
    yield from runs.provenance(found.facts)
