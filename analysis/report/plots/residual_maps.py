"""Where a law is off: mean residual over n and k, a map per token budget."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from analysis.judgement.patterns import ResidualMap
from analysis.report.plots.style import INK, STYLE

# Below prediction, on it, above it; the middle reads on light and on dark pages.
_SIGNED = LinearSegmentedColormap.from_list("signed", ["#3f7fd0", "#9aa0a8", "#dc6b2f"])
_WIDTH, _ROW = 7.4, 0.34  # inches
_COLUMNS = 3


def residual_maps(maps: tuple[ResidualMap, ...]) -> Figure | None:
    """Loss above prediction in percent, written into each cell; None without runs."""
    shown = [each for each in maps if np.isfinite(each.values).any()]
    if not shown:
        return None
    columns = min(len(shown), _COLUMNS)
    rows = -(-len(shown) // columns)
    largest = max(float(np.nanmax(np.abs(each.values))) for each in shown) or 1.0
    height = rows * (_ROW * len(shown[0].n) + 0.75)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # pyright: ignore
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, each in zip(grid, shown, strict=False):
            _draw(axes, each, largest)
        for spare in grid[len(shown) :]:
            spare.remove()
    return figure


def _draw(axes: Axes, each: ResidualMap, largest: float) -> None:
    percent = 100 * np.expm1(each.values)
    limit = 100 * np.expm1(largest)
    # Rectangles and no image: an image would be a bitmap inside the page's drawing.
    axes.pcolormesh(percent, cmap=_SIGNED, vmin=-limit, vmax=limit, alpha=0.75, linewidth=0)
    for (row, column), value in np.ndenumerate(percent):
        if np.isfinite(value):
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{value:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0"),
                ha="center",
                va="center",
                size=7,
            )
    axes.set_xticks(np.arange(len(each.k)) + 0.5, [f"{k:g}" for k in each.k])
    axes.set_yticks(np.arange(len(each.n)) + 0.5, [f"{n:g}" for n in each.n])
    axes.tick_params(length=0, colors=INK)
    axes.set(xlabel="k", ylabel="n", title=each.title)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _text(percent: float) -> str:
    return f"{percent:+.1f}" if abs(percent) >= 0.05 else "0.0"
