"""Loss against n and against tokens: the runs, the laws through them, what was held out."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.laws.forms import Array, Points
from analysis.records.table import RunTable
from analysis.report.plots.style import (
    COLUMNS,
    STYLE,
    colors_of,
    fit_limits,
    held_out,
    legend,
    log_log,
    marks,
    panel_grid,
    plain,
    spread,
)
from analysis.study.fitted import FittedLaw
from analysis.study.study import Study

_MOST_PANELS = 6
_CURVE_POINTS = 60


def loss_against_latents(study: Study, subject: str = "") -> Figure:
    """Loss against n, a line per k: the headline law with its band, and the law without tokens
    beside it where that is another. At the common budget, or of all runs where there is none.
    `subject` says of which activations."""
    budget = {} if study.budget is None else {"tokens": study.budget}
    runs = study.table.at_budget(study.budget) if study.budget is not None else study.table
    fits = (study.headline.best_known, study.plainest.best_known)
    headline, fixed = (_drawable(fitted, budget) for fitted in fits)
    with mpl.rc_context(STYLE):
        figure, (axes,) = panel_grid(1, 4.4)
        colors = colors_of(study.table.points["k"])
        for k, color in colors.items():
            _mark_runs(axes, runs, "n", runs.points["k"] == k, color, held_out(study))
            curve = _along("n", runs, k=k, **budget)
            if headline is not None and curve is not None:
                _draw(axes, headline, curve, "n", color, "-")
            if fixed is not None and fixed is not headline and curve is not None:
                _draw(axes, fixed, curve, "n", color, ":", band=False)
        fit_limits(axes, runs)
        log_log(axes, runs.points["n"], "latents n")
        title = f"Sparse autoencoders {study.budgets_in_words}"
        axes.set_title(plain(f"{subject}\n{title}") if subject else title)
        names = _line_names(headline, fixed)
        legend(axes, colors, "k", names, has_held_out=held_out(study) is not None)
    return figure


def loss_against_tokens(study: Study) -> Figure:
    """Loss against D, a panel per k and a line per n, with the headline law and its band."""
    law = study.headline.best_known
    law = law if law is not None and "tokens" in law.law.axes else None
    levels = spread(_with_ladders(study.table), _MOST_PANELS)
    with mpl.rc_context(STYLE):
        figure, panels = panel_grid(len(levels), share_y=False)
        colors = colors_of(study.table.points["n"])
        for axes, k in zip(panels, levels, strict=True):
            at_k = study.table.select(study.table.points["k"] == k)
            for n, color in colors.items():
                _mark_runs(axes, at_k, "tokens", at_k.points["n"] == n, color, held_out(study))
                curve = _along("tokens", at_k, n=n, k=k)
                if law is not None and curve is not None and n in at_k.points["n"]:
                    _draw(axes, law, curve, "tokens", color, "-")
            log_log(axes, study.table.points["tokens"], "tokens D")
            fit_limits(axes, at_k)
            axes.set_title(f"k = {k:g}")
        has_held_out = held_out(study) is not None
        legend(panels[min(len(panels), COLUMNS) - 1], colors, "n", {}, has_held_out=has_held_out)
    return figure


def _drawable(fitted: FittedLaw | None, budget: dict[str, float]) -> FittedLaw | None:
    """None for a law with tokens where runs have no budget in common to draw it at."""
    return fitted if fitted is None or budget or "tokens" not in fitted.law.axes else None


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
        marks(axes, chosen.points[axis][part], chosen.loss[part], color, filled=filled)


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


def _line_names(headline: FittedLaw | None, fixed: FittedLaw | None) -> dict[Any, str]:
    names: dict[Any, str] = {}
    if headline is not None:
        names["-"] = f"{headline.title},\n95% band"
    if fixed is not None and fixed is not headline:
        names[":"] = fixed.title
    return names
