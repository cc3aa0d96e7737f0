"""What compute buys: runs against their FLOPs, and the law's best sizes beside them."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.planning.frontier import COMPUTE_OPTIMAL, Frontier
from analysis.report.plots.style import INK, STYLE, colors_of, legend, marks, panel_grid


def frontier(
    frame: pd.DataFrame, law: Frontier | None = None, flops: str = "flops_dense"
) -> Figure | None:
    """Loss against training FLOPs, a line per k through the runs no cheaper run beats.

    Crosses are what `law` says of its best sizes, with 95% intervals; it must count FLOPs as the
    column `flops` does.
    """
    used = frame.loc[frame["excluded"] == ""]
    if flops not in used:
        return None
    with mpl.rc_context(STYLE):
        figure, (axes,) = panel_grid(1, 4.0)
        colors = colors_of(used["k"].to_numpy(dtype=np.float64))
        for k, color in colors.items():
            at_k = used.loc[used["k"] == k].sort_values([flops, "loss"])
            cost, loss = at_k[flops].to_numpy(float), at_k["loss"].to_numpy(float)
            # Of runs of equal cost the first is the lowest, and the others do not beat it.
            best = loss < np.append(np.inf, np.minimum.accumulate(loss)[:-1])
            marks(axes, cost, loss, color, filled=True, alpha=0.35)
            axes.plot(cost[best], loss[best], "-o", color=color, markersize=4.5)
            if law is not None:
                _cross_best_sizes(axes, law, k, color)
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel(f"training FLOPs ({flops.removeprefix('flops_')} convention)")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
        axes.grid(which="both", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_title("Best loss for a given compute, by k")
        legend(axes, colors, "k", {}, has_held_out=False)
        if law is not None:
            _name_crosses(axes)
    return figure


def _name_crosses(axes: Axes) -> None:
    drawn = axes.get_legend()
    assert drawn is not None
    handles = [
        *drawn.legend_handles,
        Line2D([], [], color=INK, marker="x", ls="", label="the law's"),
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _cross_best_sizes(axes: Axes, law: Frontier, k: float, color: str) -> None:
    for point in law.points:
        if point.k == k and point.rule == COMPUTE_OPTIMAL:
            below, above = point.loss.value - point.loss.low, point.loss.high - point.loss.value
            known = bool(np.isfinite([below, above]).all()) and min(below, above) >= 0
            bars = [[below], [above]] if known else None
            at = point.flops, point.loss.value
            axes.errorbar(*at, yerr=bars, fmt="x", color=color, elinewidth=1, markersize=6)
