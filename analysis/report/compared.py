"""What a report shows of runs on no one law: architectures at equal L0, levels of a key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.ablation.found import Ablation
from analysis.ablation.settings import RATES
from analysis.ablation.table import ablation_json
from analysis.errors import TableError
from analysis.records.exclusions import exclusions
from analysis.records.sparsity import lacks_k
from analysis.report import page
from analysis.report.plots import ablation as ablation_plots
from analysis.report.plots import sparsity as sparsity_plots
from analysis.report.sections import ablation, runs, sparsity
from analysis.sparsity.comparison import Comparison, compare, comparison_json
from analysis.sparsity.series import ARCHITECTURE
from analysis.study.facts import costs, provenance, subject
from analysis.study.run_cautions import run_cautions

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Compared:
    name: str  # of the sweep
    frame: pd.DataFrame  # as of load_runs
    ablations: list[Ablation]
    at_l0: list[Comparison]  # of architectures, and of the levels of each key where k is an outcome
    refusals: list[str]  # why there is not a comparison

    @property
    def n_used(self) -> int:
        return self.frame["excluded"].tolist().count("")

    def json(self) -> dict[str, Any]:
        """comparison.json."""
        return {
            **{"schema_version": SCHEMA_VERSION, "sweep": self.name, "n_runs": self.n_used},
            "ablations": [ablation_json(one) for one in self.ablations],
            "equal_l0": [comparison_json(one) for one in self.at_l0],
            "not_compared": self.refusals,
            "cautions": run_cautions(self.frame),
            "dropped": [drop._asdict() for drop in exclusions(self.frame)],
            "cost": costs(self.frame),
            "provenance": provenance(self.frame),
        }


def is_compared(frame: pd.DataFrame, found: list[Ablation]) -> bool:
    """Whether runs are to be compared and not fitted: they differ in a key, in their architecture,
    or have no k."""
    return bool(found) or _several(frame) or lacks_k(frame)


def compared(frame: pd.DataFrame, name: str, found: list[Ablation]) -> Compared:
    """Compare what can be compared; what cannot is a refusal that the page shows.

    Where architectures are compared, learning rates are tuned for each and no question.
    """
    several = _several(frame)
    asked = [one for one in found if not (several and one.key in RATES)]
    at_l0: list[Comparison] = []
    refusals: list[str] = []
    for labelled, by, reference in _questions(frame, asked, several=several):
        try:
            at_l0.append(compare(labelled, by=by, reference=reference))
        except TableError as refusal:
            refusals.append(str(refusal))
    return Compared(name, frame, asked, at_l0, refusals)


def _several(frame: pd.DataFrame) -> bool:
    """Whether runs in use are of several architectures."""
    used = frame.loc[frame["excluded"] == ""]
    return ARCHITECTURE in used and len(set(used[ARCHITECTURE])) > 1


def _questions(
    frame: pd.DataFrame, found: list[Ablation], *, several: bool
) -> Iterator[tuple[pd.DataFrame, tuple[str, ...], str | None]]:
    """Runs, the columns to compare at equal L0 and the reference: where a key is the question and
    sparsity is an outcome, its levels with the usual one; else architectures."""
    used = frame.loc[frame["excluded"] == ""]
    for one in found:
        if one.outcome:
            levels = [one.level_of.get(str(run), "") for run in used["run_id"]]
            labelled = used.assign(**{one.key: levels})
            known = labelled.loc[[level != "" for level in levels]]
            if several:
                yield known, (ARCHITECTURE, one.key), None
            else:
                yield known, (one.key,), one.usual
    if not found:
        yield frame, (ARCHITECTURE,), None


def drawings(found: Compared) -> dict[str, Figure | None]:
    """Every figure by the name of its file."""
    figures: dict[str, Figure | None] = {}
    for place, one in enumerate(found.at_l0):
        number = f"_{place + 1}" if place else ""
        figures[f"frontiers{number}"] = sparsity_plots.frontiers(one)
        figures[f"loss_at_l0{number}"] = sparsity_plots.loss_at_l0(one)
    for one in found.ablations:
        figures[f"ablation_{_file_name(one.key)}"] = ablation_plots.ablation(one)
    return figures


def _file_name(key: str) -> str:
    return key.replace(" and ", "_and_").replace(".", "_")


def body(found: Compared, figures: dict[str, Figure | None]) -> Iterator[str]:
    """The page from top to bottom."""
    yield page.heading(f"Sparse autoencoders compared: {found.name}", 1)
    yield page.paragraph(subject(found.frame), "soft")
    yield page.paragraph(
        f"{found.n_used} runs are compared with each other. No law is fitted to them: they differ "
        "in more than their sizes, or have no k. Keep runs of one kind in a folder of their own "
        "for the laws (python -m analysis.fit --k l0 takes measured L0 as k)."
    )
    for code, message in run_cautions(found.frame).items():
        yield page.paragraph(f"{code}: {message}", "warn")
    for one in found.ablations:
        drawing = figures[f"ablation_{_file_name(one.key)}"]
        yield from ablation.ablation(one, drawing)
    for place, one in enumerate(found.at_l0):
        number = f"_{place + 1}" if place else ""
        drawn = (figures[f"frontiers{number}"], figures[f"loss_at_l0{number}"])
        yield from sparsity.at_equal_l0(one, *drawn)
    for refusal in found.refusals:
        yield page.paragraph(f"Not compared at equal L0: {refusal}", "warn")
    yield page.heading("Runs excluded")
    yield from runs.left_out(exclusions(found.frame), found.n_used, len(found.frame))
    yield page.heading("Cost")
    yield from runs.cost(costs(found.frame))
    yield page.heading("Provenance")
    yield from runs.provenance(provenance(found.frame))


def text(found: Compared) -> Iterator[str]:
    """What leads the page, for a terminal."""
    yield f"{found.n_used} runs compared; no law is fitted to them"
    for one in found.ablations:
        yield from ablation.lines(one)
    for one in found.at_l0:
        yield from sparsity.lines(one)
    yield from (f"not compared at equal L0: {refusal}" for refusal in found.refusals)
