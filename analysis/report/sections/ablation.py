"""What one key does: loss and dead latents at each of its levels."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from analysis.ablation.found import Ablation
from analysis.ablation.table import header, rows
from analysis.planning.text import aligned
from analysis.report import page

_METHOD = (
    "Loss is the mean over seeds in ln loss. Differences are to the level that most runs have, "
    "paired by seed; the scatter behind the 95% intervals is pooled over the rows. With one seed "
    "everywhere there is no interval."
)
_OUTCOME = (
    "Sparsity is an outcome in these runs: at one penalty the levels differ in L0 too, and a lower "
    "loss here may be a larger L0. The comparison at equal L0 below is the fair one."
)


def ablation(found: Ablation, drawing: Figure | None) -> Iterator[str]:
    yield page.heading(f"What {found.key} does")
    yield page.figure(
        drawing,
        "Held-out loss, loss relative to the usual level, and dead latents by level: a point for "
        "each seed in the first panel, lines through the means. At most eight of the cells.",
    )
    yield page.table(header(found), rows(found))
    yield page.paragraph(_METHOD, "soft")
    if found.outcome:
        yield page.paragraph(_OUTCOME, "warn")


def lines(found: Ablation) -> Iterator[str]:
    """The table, for a terminal."""
    yield f"\nby {found.key}"
    yield aligned(header(found), rows(found))
