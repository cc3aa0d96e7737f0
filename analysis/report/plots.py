"""Figures of a sweep: loss against n, loss against tokens, residuals, frontier.

Text and axes are drawn in INK, which the report's page replaces by the color of its text, so
that one drawing reads on light and on dark. Line colors have contrast on both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.counts import short_count
from analysis.laws.forms import Array, Points
from analysis.records.table import RunTable
from analysis.study.fitted import FittedLaw
from analysis.study.study import Study

INK = "#010203"
_SCALE = LinearSegmentedColormap.from_list(
    "ordered", ["#3f7fd0", "#1f9e93", "#a58a1c", "#dc6b2f", "#b8438e"]
)
_STYLE: dict[Any, Any] = {
    **{"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK},
    **{"xtick.color": INK, "ytick.color": INK, "axes.titlesize": 10, "font.size": 9},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"svg.fonttype": "none", "svg.hashsalt": "analysis", "lines.linewidth": 1.4},
}
_MOST_PANELS = 6
_COLUMNS = 3
_TICKS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)  # of each decade of loss
_WIDTH = 7.4  # inches
_CURVE_POINTS = 60


def loss_against_latents(study: Study, subject: str = "") -> Figure:
    """Loss against n at the common budget, a line per k: the headline law with its band, and
    L(n,k | D) beside it where that is another law. `subject` says of which activations."""
    runs = study.table.at_budget(study.budget)
    headline, fixed = study.headline.best_known, study.at_common_budget.best_known
    with mpl.rc_context(_STYLE):
        figure, (axes,) = _panels(1, 4.4)
        colors = _colors(study.table.points["k"])
        for k, color in colors.items():
            _mark_runs(axes, runs, "n", runs.points["k"] == k, color, _held_out(study))
            curve = _along("n", runs, k=k, tokens=study.budget)
            if headline is not None and curve is not None:
                _draw(axes, headline, curve, "n", color, "-")
            if fixed is not None and fixed is not headline and curve is not None:
                _draw(axes, fixed, curve, "n", color, ":", band=False)
        _fit_limits(axes, runs)
        _log_log(axes, runs.points["n"], "latents n")
        title = f"Sparse autoencoders at D = {short_count(study.budget)} tokens"
        axes.set_title(f"{subject}\n{title}" if subject else title)
        names = _line_names(headline, fixed)
        _legend(axes, colors, "k", names, has_held_out=_held_out(study) is not None)
    return figure


def loss_against_tokens(study: Study) -> Figure:
    """Loss against D, a panel per k and a line per n, with the headline law and its band."""
    law = study.headline.best_known
    law = law if law is not None and "tokens" in law.law.axes else None
    levels = _spread(_with_ladders(study.table), _MOST_PANELS)
    with mpl.rc_context(_STYLE):
        figure, panels = _panels(len(levels))
        colors = _colors(study.table.points["n"])
        for axes, k in zip(panels, levels, strict=True):
            at_k = study.table.select(study.table.points["k"] == k)
            for n, color in colors.items():
                _mark_runs(axes, at_k, "tokens", at_k.points["n"] == n, color, _held_out(study))
                curve = _along("tokens", at_k, n=n, k=k)
                if law is not None and curve is not None and n in at_k.points["n"]:
                    _draw(axes, law, curve, "tokens", color, "-")
            _log_log(axes, study.table.points["tokens"], "tokens D")
            _fit_limits(axes, study.table)
            axes.set_title(f"k = {k:g}")
        has_held_out = _held_out(study) is not None
        _legend(panels[min(len(panels), _COLUMNS) - 1], colors, "n", {}, has_held_out=has_held_out)
    return figure


def residuals(study: Study) -> Figure | None:
    """(loss / prediction - 1) of the headline law against n and tokens; None without a fit."""
    fitted = study.headline.best_known
    if fitted is None:
        return None
    tables = [fitted.fit.table] + ([fitted.holdout.table] if fitted.holdout else [])
    with mpl.rc_context(_STYLE):
        figure, panels = _panels(2, 3.2)
        colors = _colors(study.table.points["k"])
        for axes, (axis, label) in zip(panels, _RESIDUAL_AXES, strict=True):
            axes.axhline(0.0, color=INK, linewidth=0.8, alpha=0.6)
            for table, filled in zip(tables, (True, False), strict=False):
                percent = 100 * np.expm1(table.log_loss - fitted.fit.log_predict(table.points))
                for k, color in colors.items():
                    at_k = table.points["k"] == k
                    x = table.points[axis][at_k] * _dodge(k, list(colors))
                    _marks(axes, x, percent[at_k], color, filled=filled)
            _log_x(axes, study.table.points[axis], label)
        panels[0].set_ylabel("loss above prediction, %")
        has_held_out = fitted.holdout is not None
        _legend(panels[-1], colors, "k", {}, has_held_out=has_held_out)
    return figure


_RESIDUAL_AXES = (("n", "latents n"), ("tokens", "tokens D"))


def frontier(frame: pd.DataFrame, flops: str = "flops_dense") -> Figure | None:
    """Loss against training FLOPs, a line per k through the runs no cheaper run beats."""
    used = frame.loc[frame["excluded"] == ""]
    if flops not in used:
        return None
    with mpl.rc_context(_STYLE):
        figure, (axes,) = _panels(1, 4.0)
        colors = _colors(used["k"].to_numpy(dtype=np.float64))
        for k, color in colors.items():
            at_k = used.loc[used["k"] == k].sort_values([flops, "loss"])
            cost, loss = at_k[flops].to_numpy(float), at_k["loss"].to_numpy(float)
            # Of runs of equal cost the first is the lowest, and the others do not beat it.
            best = loss < np.append(np.inf, np.minimum.accumulate(loss)[:-1])
            _marks(axes, cost, loss, color, filled=True, alpha=0.35)
            axes.plot(cost[best], loss[best], "-o", color=color, markersize=4.5)
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel(f"training FLOPs ({flops.removeprefix('flops_')} convention)")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
        axes.grid(which="both", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_title("Best loss for a given compute, by k")
        _legend(axes, colors, "k", {}, has_held_out=False)
    return figure


def _panels(count: int, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure of one width with `count` panels, at most _COLUMNS in a row of `height` inches."""
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH, rows * height), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for spare in grid[count:]:
        spare.remove()
    for first in grid[:count:columns]:
        first.set_ylabel("normalized MSE, held out")
    return figure, list(grid[:count])


def _held_out(study: Study) -> RunTable | None:
    fitted = study.headline.best_known
    return fitted.holdout.table if fitted is not None and fitted.holdout is not None else None


def _along(axis: str, runs: RunTable, **fixed: float) -> Points | None:
    """Points of a curve over the range of `axis` in runs that share the fixed values."""
    here = np.ones(len(runs), dtype=bool)
    for name, value in fixed.items():
        here &= runs.points[name] == value
    if not here.any():
        return None
    values = runs.points[axis][here]
    grid = np.geomspace(values.min(), values.max(), _CURVE_POINTS)
    return {axis: grid, **{name: np.full(_CURVE_POINTS, v) for name, v in fixed.items()}}


def _draw(
    axes: Axes, fitted: FittedLaw, at: Points, axis: str, color: str, style: str, band: bool = True
) -> None:
    axes.plot(at[axis], np.exp(fitted.fit.log_predict(at)), style, color=color)
    if band:
        low, high = fitted.band(at)
        axes.fill_between(at[axis], low, high, color=color, alpha=0.16, linewidth=0)


def _mark_runs(
    axes: Axes, runs: RunTable, axis: str, which: Array, color: str, held: RunTable | None
) -> None:
    chosen = runs.select(np.asarray(which, dtype=bool))
    hidden = np.isin(chosen.runs, held.runs if held is not None else [])
    for part, filled in ((~hidden, True), (hidden, False)):
        _marks(axes, chosen.points[axis][part], chosen.loss[part], color, filled=filled)


def _marks(axes: Axes, x: Array, y: Array, color: str, *, filled: bool, alpha: float = 1.0) -> None:
    face = color if filled else "none"
    axes.plot(x, y, "o", color=color, markerfacecolor=face, markersize=4.5, alpha=alpha)


def _colors(levels: Iterable[float]) -> dict[float, str]:
    unique = np.unique(np.asarray(list(levels), dtype=np.float64)).tolist()
    shades = np.linspace(0.0, 1.0, len(unique)) if len(unique) > 1 else [0.0]
    return {level: to_hex(_SCALE(shade)) for level, shade in zip(unique, shades, strict=True)}


def _dodge(level: float, levels: Sequence[float]) -> float:
    """A slight shift along a log axis, so that points of several k do not hide each other."""
    return float(np.exp(0.05 * (levels.index(level) - (len(levels) - 1) / 2)))


def _with_ladders(table: RunTable) -> list[float]:
    """Values of k at which some n has several budgets; every k where there is none."""
    n, k, tokens = (table.points[axis] for axis in ("n", "k", "tokens"))
    levels: list[float] = np.unique(k).tolist()
    several = [
        level
        for level in levels
        if any(len(np.unique(tokens[(k == level) & (n == size)])) > 1 for size in np.unique(n))
    ]
    return several or levels


def _fit_limits(axes: Axes, runs: RunTable) -> None:
    """Limits from the runs: the band of a poorly known law may leave the drawing."""
    axes.set_ylim(runs.loss.min() / 1.12, runs.loss.max() * 1.12)


def _spread(levels: Sequence[float], most: int) -> list[float]:
    if len(levels) <= most:
        return list(levels)
    return [levels[i] for i in np.linspace(0, len(levels) - 1, most).round().astype(int)]


def _log_x(axes: Axes, values: Array, label: str) -> None:
    levels = _spread(np.unique(values).tolist(), 6)
    axes.set_xscale("log")
    margin = max(values.max() / values.min(), 2.0) ** 0.09
    axes.set_xlim(values.min() / margin, values.max() * margin)
    axes.xaxis.set_major_locator(FixedLocator(levels))
    axes.xaxis.set_minor_locator(NullLocator())
    text = short_count if label.startswith("tokens") else "{:.0f}".format
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: text(v)))
    axes.set_xlabel(label)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)


def _log_log(axes: Axes, values: Array, label: str) -> None:
    _log_x(axes, values, label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=_TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
    axes.grid(which="both", color=INK, alpha=0.12, linewidth=0.6)


def _line_names(headline: FittedLaw | None, fixed: FittedLaw | None) -> dict[Any, str]:
    names: dict[Any, str] = {}
    if headline is not None:
        names["-"] = f"{headline.title},\n95% band"
    if fixed is not None and fixed is not headline:
        names[":"] = fixed.title
    return names


def _legend(
    axes: Axes,
    colors: dict[float, str],
    name: str,
    lines: dict[Any, str],
    *,
    has_held_out: bool,
) -> None:
    handles = [
        Line2D([], [], color=color, marker="o", markersize=4.5, label=f"{name} = {level:g}")
        for level, color in colors.items()
    ]
    handles += [Line2D([], [], color=INK, ls=style, label=text) for style, text in lines.items()]
    if has_held_out:
        handles.append(Line2D([], [], color=INK, marker="o", mfc="none", ls="", label="held out"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))
