"""Quality metrics against n and against k: a panel per metric, a line per level of the other."""

from __future__ import annotations

from textwrap import fill

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.quality.found import AXES, MetricFound, QualityFound
from analysis.quality.law import Tried
from analysis.quality.values import OTHER, Axis, Cell, Values
from analysis.report.plots.style import (
    COLUMNS,
    INK,
    STYLE,
    colors_of,
    legend,
    log_x,
    marks,
    panel_grid,
    plain,
)

_CURVE_POINTS = 60
_TITLE_WIDTH = 28  # characters, of a panel a third of the page wide
# No line ends before an arrow.
_ARROWS = {"lower": "\u00a0↓", "higher": "\u00a0↑", "nearer 0": "\u00a0→\u00a00", "": ""}
LABELS: dict[Axis, str] = {"n": "latents n", "k": "active latents k"}


def against(axis: Axis, found: QualityFound) -> Figure | None:
    """Every metric that has a better way, along `axis`: runs, lines through the means over seeds,
    and dashed the law where one holds. None where nothing varies along it."""
    drawn = [one for one in found.metrics if one.values.quality.better and axis in one.trends]
    if not drawn:
        return None
    levels = [level for one in drawn for level in one.values.levels(OTHER[axis])]
    colors = colors_of(levels)
    with mpl.rc_context(STYLE):
        figure, panels = panel_grid(len(drawn), 2.3, share_y=False)
        for axes, one in zip(panels, drawn, strict=True):
            _draw(axes, one, axis, colors)
        styles = {"--": "law that stands\nits tests"} if any(one.law for one in drawn) else {}
        open_too = any(one.values.n_dead for one in drawn)
        beside = panels[min(len(panels), COLUMNS) - 1]
        legend(beside, colors, OTHER[axis], styles, has_held_out=False)
        if open_too:
            _name_open(beside)
    return figure


def drawings(found: QualityFound) -> dict[str, Figure | None]:
    """Every figure by the name of its file."""
    return {f"quality_{axis}": against(axis, found) for axis in AXES}


def _draw(axes: Axes, found: MetricFound, axis: Axis, colors: dict[float, str]) -> None:
    values, other = found.values, OTHER[axis]
    for level, cells in values.lines(axis):
        runs = values.runs.loc[values.runs[other] == level]
        for dead, part in runs.groupby("dead"):
            at, y = (part[name].to_numpy(np.float64) for name in (axis, "value"))
            marks(axes, at, y, colors[level], filled=not dead)
        x = [getattr(cell, axis) for cell in cells]
        axes.plot(x, [values.of[cell].mean() for cell in cells], color=colors[level], alpha=0.7)
        if found.law is not None:
            _draw_law(axes, found.law, cells, axis, colors[level])
    _draw_baselines(axes, values, axis)
    log_x(axes, np.array(values.levels(axis)), LABELS[axis])
    axes.tick_params(axis="x", labelsize=7, labelrotation=45 if axis == "n" else 0)
    quality = values.quality
    title = fill(f"{quality.title}{_ARROWS[quality.better]}", _TITLE_WIDTH)
    axes.set_title(plain(title), fontsize=8)
    axes.set_ylabel("")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _draw_baselines(axes: Axes, values: Values, axis: Axis) -> None:
    """Those that all runs of a level share, and that leave the runs room: named where they end."""
    low, high = axes.get_ylim()
    levels = values.runs[axis].to_numpy(np.float64)
    for name in values.beside.baselines:
        along = values.beside.along(name, levels)
        if along is None or not all(2 * low - high < y < 2 * high - low for y in along.values()):
            continue
        axes.plot([*along], [*along.values()], ":", color=INK, alpha=0.6)
        last = max(along)
        axes.annotate(
            *(plain(name), (last, along[last])),
            **{"xytext": (0, 2), "textcoords": "offset points", "ha": "right", "fontsize": 7},
        )


def _draw_law(axes: Axes, law: Tried, cells: list[Cell], axis: Axis, color: str) -> None:
    assert law.fitted is not None, "a law that holds was fitted"
    first, last = (getattr(cell, axis) for cell in (cells[0], cells[-1]))
    along = np.geomspace(first, last, _CURVE_POINTS)
    fixed = np.full(_CURVE_POINTS, getattr(cells[0], OTHER[axis]))
    at = {axis: along, OTHER[axis]: fixed}
    axes.plot(along, np.exp(law.fitted.fit.log_predict(at)), "--", color=color)


def _name_open(axes: Axes) -> None:
    shown = axes.get_legend()
    assert shown is not None, "it was just made"
    shown.set_title("open: mostly\ndead latents")
