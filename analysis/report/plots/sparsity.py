"""Loss against measured L0, a line per kind; and the loss at one L0 against n."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from analysis.report.plots.style import (
    COLUMNS,
    INK,
    STYLE,
    log_log,
    looks_of,
    name_kinds,
    panel_grid,
    spread,
)
from analysis.sparsity.comparison import AtOneL0, Comparison, powers_of_two
from analysis.sparsity.curve import Curve
from analysis.sparsity.equal import AtL0, readings
from analysis.sparsity.series import Chosen, Series

_MOST_PANELS = 6
_CURVE_POINTS = 60
_MOST_TICKS = 6
_MANY = 20.0  # between the ends of an axis of losses, from which on its labels would touch


def frontiers(found: Comparison) -> Figure:
    """A panel per n: every run, and through them the mean over seeds of the monotone curves, with
    the seeds' range as a band. Runs of learning rates that were not the best are open."""
    chosen = found.chosen
    sizes = spread(chosen.sizes, _MOST_PANELS)
    looks = looks_of(chosen.arms)
    with mpl.rc_context(STYLE):
        figure, panels = panel_grid(len(sizes), 4.0 if len(sizes) == 1 else 3.0)
        for axes, n in zip(panels, sizes, strict=True):
            here = [series for series in chosen.series if series.place.n_latents == n]
            for arm, look in looks.items():
                _draw_arm(axes, [s for s in here if s.place.arm == arm], chosen, look)
            _log_axes(axes, here)
            for target in found.targets:
                axes.axvline(target.l0, color=INK, alpha=0.35, linewidth=0.8, linestyle=":")
            axes.set_title(f"n = {n}")
        notes = [Line2D([], [], color=INK, ls=":", alpha=0.5, label="L0 compared")]
        places = {series.place for series in chosen.series}
        if len(places) > len({(place.arm, place.n_latents) for place in places}):
            open_marks = {"marker": "o", "mfc": "none", "ls": "", "markersize": 4.5}
            notes.append(Line2D([], [], color=INK, label="not the best lr", **open_marks))
        name_kinds(panels[min(len(panels), COLUMNS) - 1], looks, notes)
    return figure


def loss_at_l0(found: Comparison) -> Figure | None:
    """A panel per L0: the loss read there against n, with intervals and power laws; None where
    runs have one n alone."""
    if len(found.chosen.sizes) < 2:
        return None
    targets = found.targets[:_MOST_PANELS]
    looks = looks_of(found.chosen.arms)
    with mpl.rc_context(STYLE):
        figure, panels = panel_grid(len(targets), 4.0 if len(targets) == 1 else 3.0)
        for axes, target in zip(panels, targets, strict=True):
            for arm, look in looks.items():
                _draw_at(axes, target, arm, look)
            sizes = np.array([at.place.n_latents for at in target.found], dtype=np.float64)
            log_log(axes, sizes, "latents n")
            axes.set_title(f"L0 = {target.l0:g}")
        name_kinds(panels[min(len(panels), COLUMNS) - 1], looks)
    return figure


def _draw_arm(axes: Axes, series: list[Series], chosen: Chosen, look: tuple[str, str]) -> None:
    if not series:
        return
    color, marker = look
    best = _best_tuned(series, chosen)
    for one in series:
        face = color if one.place.tuned == best else "none"
        axes.plot(one.l0, one.loss, marker, color=color, mfc=face, markersize=4.5, alpha=0.8)
    curves = [Curve.through(s.l0, s.loss) for s in series if s.place.tuned == best]
    low = max(curve.range[0] for curve in curves)
    high = min(curve.range[1] for curve in curves)
    if not low < high:
        return
    # The ends of a range are there up to rounding.
    grid = np.geomspace(low * (1 + 1e-9), high * (1 - 1e-9), _CURVE_POINTS)
    read = [[at.log_loss if (at := curve.at(x)) else np.nan for x in grid] for curve in curves]
    losses = np.array(read)
    axes.plot(grid, np.exp(losses.mean(axis=0)), "-", color=color)
    ends = np.exp([losses.min(axis=0), losses.max(axis=0)])
    axes.fill_between(grid, *ends, color=color, alpha=0.16, linewidth=0)


def _best_tuned(series: list[Series], chosen: Chosen) -> tuple[float | None, ...]:
    """The tuned values with the lowest loss in the middle of the measured L0s."""
    l0s = np.concatenate([one.l0 for one in series])
    middle = float(np.median(l0s))
    alone = Chosen(series, chosen.budget, 0, chosen.by)
    read, _ = readings(alone, middle)
    return read[0].place.tuned if read else series[0].place.tuned


def _log_axes(axes: Axes, series: list[Series]) -> None:
    l0s = np.concatenate([one.l0 for one in series])
    log_log(axes, l0s, "measured L0")
    if powers := powers_of_two(l0s):
        axes.set_xticks(spread(powers, _MOST_TICKS))
    low, high = axes.get_ylim()
    if high / low > _MANY:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))


def _draw_at(axes: Axes, target: AtOneL0, arm: str, look: tuple[str, str]) -> None:
    color, marker = look
    points = sorted(
        (at for at in target.found if at.place.arm == arm), key=lambda at: at.place.n_latents
    )
    for at in points:
        _draw_point(axes, target, at, color, marker)
    law = next((law for law in target.powers if law.arm == arm), None)
    if law is not None:
        ends = np.geomspace(law.sizes.min(), law.sizes.max(), 2)
        axes.plot(ends, law.at(ends), "-", color=color)


def _draw_point(axes: Axes, target: AtOneL0, at: AtL0, color: str, marker: str) -> None:
    ends = target.interval(at)
    bars = None if ends is None else [[at.loss - ends.low], [ends.high - at.loss]]
    place = float(at.place.n_latents), at.loss
    axes.errorbar(*place, yerr=bars, fmt=marker, color=color, elinewidth=1, markersize=4.5)
