"""Designs as lines of text and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.planning import text
from analysis.planning.design import RunDesign
from analysis.planning.sweep_file import Cell
from analysis.records.table import COLUMN_OF

HEADER = ("run", "n_latents", "k", "tokens", "seed", "cost", "sd after")


def design_text(design: RunDesign, cells: Sequence[Cell]) -> str:
    """The runs, what each leaves of the doubt, and every target's interval before and after."""
    stored = design.stored
    rows = [
        (
            *(str(number), str(cell.n_latents), str(cell.k), text.tokens(cell.tokens)),
            *(str(cell.seed), f"{run.cost:.3g}", f"{run.sd_after:.2%}"),
        )
        for number, (run, cell) in enumerate(zip(design.runs, cells, strict=True), start=1)
    ]
    value = stored.law.predict(design.targets)
    targets = [
        (
            *(text.of_axis(axis, float(v[row])) for axis, v in design.targets.items()),
            f"{value[row]:.4g}",
            text.between(design.before, row),
            text.between(design.after, row),
            note or "-",
        )
        for row, note in enumerate(stored.outside(design.targets))
    ]
    header = (*design.targets, stored.loss, "95% of the law now", "with these runs", "outside")
    return "\n".join(
        [
            f"{stored.title} ({stored.law.name}), fitted on {stored.rows}; a run scatters by "
            f"{stored.variance**0.5:.2%}",
            text.aligned(HEADER, rows),
            f"{len(rows)} runs of {design.n_candidates} candidates cost {design.cost:.4g} of "
            f"{design.budget:.4g} {design.unit}",
            f"standard error of ln loss at the target: {design.sd_before:.2%} now, "
            f"{design.sd_after:.2%} with these runs ({design.sd_blind:.2%} with runs chosen "
            "blindly for the same budget, median)",
            text.aligned(header, targets),
            "expected, if the form of the law holds: runs that narrow an interval most are not "
            "those that would show a wrong form.",
        ]
    )


def design_json(design: RunDesign, cells: Sequence[Cell]) -> dict[str, Any]:
    """docs/planning.md lists the keys; sd are of ln loss."""
    value = design.stored.law.predict(design.targets)
    return {
        **{"law": design.stored.law.name, "title": design.stored.title},
        **{"unit": design.unit, "budget": design.budget, "cost": design.cost},
        **{"sd_before": design.sd_before, "sd_after": design.sd_after},
        "sd_blind": design.sd_blind,
        "runs": [
            {**vars(cell), "cost": run.cost, "sd_after": run.sd_after}
            for run, cell in zip(design.runs, cells, strict=True)
        ],
        "targets": [
            {
                **{COLUMN_OF.get(a, a): float(v[row]) for a, v in design.targets.items()},
                "loss": float(value[row]),
                "law_ci95_before": [float(end[row]) for end in design.before],
                "law_ci95_after": [float(end[row]) for end in design.after],
            }
            for row in range(len(value))
        ],
    }
