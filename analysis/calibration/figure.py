"""The valleys of a calibration: loss against learning rate, a panel per cell."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.calibration.cells import BestRate
from analysis.counts import short_count
from scaling.schedule import PowerRule

_COLUMNS = 3
_PANEL = (2.6, 2.1)  # inches
_MOST_TICKS = 4
_RUNS, _FITTED, _IN_USE = "#1f4e9c", "#c2410c", "#6b7280"


def valleys(bests: Sequence[BestRate], fitted: PowerRule | None, in_use: PowerRule) -> Figure:
    """Runs, the parabola through them, the rate of the rule in use and of the fitted one."""
    columns = min(_COLUMNS, len(bests))
    rows = -(-len(bests) // columns)
    figure = Figure(
        figsize=(columns * _PANEL[0] + 0.4, rows * _PANEL[1] + 0.5), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in grid[len(bests) :]:
        spare.remove()
    for axes, best in zip(grid, bests, strict=False):
        _panel(axes, best, fitted, in_use)
    figure.supxlabel("learning rate", fontsize=9)
    figure.supylabel("held-out loss", fontsize=9)
    figure.legend(handles=_handles(fitted), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _panel(axes: Axes, best: BestRate, fitted: PowerRule | None, in_use: PowerRule) -> None:
    cell = best.cell
    point = (cell.n_latents, cell.tokens, cell.batch_tokens)
    axes.axvline(in_use.at(*point), color=_IN_USE, linestyle=":")
    if fitted is not None:
        axes.axvline(fitted.at(*point), color=_FITTED, linestyle="--")
    axes.plot(cell.lr, np.exp(cell.log_loss), "o", color=_RUNS, markersize=4)
    if np.isfinite(best.lr):
        lr = np.geomspace(cell.lr[0], cell.lr[-1], 60)
        lowest = int(np.argmin(cell.log_loss))
        u, at_lowest = np.log(lr / best.lr), np.log(cell.lr[lowest] / best.lr)
        level = cell.log_loss[lowest] - best.curvature * at_lowest**2
        axes.plot(lr, np.exp(level + best.curvature * u**2), color=_RUNS, linewidth=1)
    axes.set_xscale("log")
    some = cell.lr[:: -(-len(cell.lr) // _MOST_TICKS)]
    axes.xaxis.set_major_locator(FixedLocator(list(some)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=7)
    flag = "" if best.usable else " (flagged)"
    axes.set_title(
        f"n={cell.n_latents} k={cell.k} D={short_count(cell.tokens)} "
        f"B={short_count(cell.batch_tokens)}{flag}",
        fontsize=8,
    )


def _handles(fitted: PowerRule | None) -> list[Line2D]:
    handles = [
        Line2D([], [], color=_RUNS, marker="o", linestyle="", label="runs"),
        Line2D([], [], color=_IN_USE, linestyle=":", label="rule in use"),
    ]
    if fitted is not None:
        handles.append(Line2D([], [], color=_FITTED, linestyle="--", label="fitted rule"))
    return handles
