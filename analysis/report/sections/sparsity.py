"""Architectures, or levels of a key, at equal L0: frontiers, losses there, and laws in n."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from analysis.counts import short_count
from analysis.planning.text import aligned
from analysis.report import page
from analysis.sparsity.cells import METHOD, POWERS_HEADER, header, power_rows, rows
from analysis.sparsity.comparison import Comparison


def at_equal_l0(
    found: Comparison, frontiers: Figure | None, loss_at_l0: Figure | None
) -> Iterator[str]:
    by = ", ".join(found.chosen.by)
    yield page.heading(f"Loss at equal L0, by {by}")
    yield page.figure(
        frontiers,
        f"Held-out loss against measured L0 at each n, runs of {short_count(found.chosen.budget)} "
        "tokens: every run, the mean over seeds of monotone curves through them, and the seeds' "
        "range as a band. Dotted: the L0s compared below.",
    )
    yield page.paragraph(METHOD)
    for target in found.targets:
        yield page.heading(f"L0 = {target.l0:g}", 3)
        yield page.table(header(found), rows(target, found.reference))
    for caution in found.cautions():
        yield page.paragraph(caution, "warn")
    if loss_at_l0 is None:
        return
    yield page.figure(
        loss_at_l0,
        "The losses of the tables against n, with 95% intervals; lines are power laws where there "
        "are at least three n.",
    )
    for target in found.targets:
        if target.powers:
            yield page.heading(f"Fall with n at L0 = {target.l0:g}", 3)
            yield page.table(POWERS_HEADER, power_rows(target))
            yield page.paragraph(_ABOUT_POWERS, "soft")


_ABOUT_POWERS = (
    "Straight lines in logarithms, without a floor: they say how the loss falls over the n "
    "measured, and predict nothing beyond. Each n weighs by its own uncertainty, and points off "
    "the line widen the interval of b."
)


def lines(found: Comparison) -> Iterator[str]:
    """The tables and their cautions, for a terminal."""
    for target in found.targets:
        yield f"\nat L0 = {target.l0:g}, by {', '.join(found.chosen.by)}"
        yield aligned(header(found), rows(target, found.reference))
        if target.powers:
            yield "\n" + aligned(POWERS_HEADER, power_rows(target))
    yield from (f"caution: {caution}" for caution in found.cautions())
