"""How far runs lie from a law, and where."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from analysis.report.plots.style import (
    INK,
    STYLE,
    colors_of,
    dodge,
    legend,
    log_x,
    marks,
    panel_grid,
)
from analysis.study.study import Study


def residuals(study: Study) -> Figure | None:
    """(loss / prediction - 1) of the headline law against n and tokens; None without a fit."""
    fitted = study.headline.best_known
    if fitted is None:
        return None
    tables = [fitted.fit.table] + ([fitted.holdout.table] if fitted.holdout else [])
    with mpl.rc_context(STYLE):
        figure, panels = panel_grid(2, 3.2)
        colors = colors_of(study.table.points["k"])
        for axes, (axis, label) in zip(panels, _RESIDUAL_AXES, strict=True):
            axes.axhline(0.0, color=INK, linewidth=0.8, alpha=0.6)
            for table, filled in zip(tables, (True, False), strict=False):
                percent = 100 * np.expm1(table.log_loss - fitted.fit.log_predict(table.points))
                for k, color in colors.items():
                    at_k = table.points["k"] == k
                    x = table.points[axis][at_k] * dodge(k, list(colors))
                    marks(axes, x, percent[at_k], color, filled=filled)
            log_x(axes, study.table.points[axis], label)
        panels[0].set_ylabel("loss above prediction, %")
        has_held_out = fitted.holdout is not None
        legend(panels[-1], colors, "k", {}, has_held_out=has_held_out)
    return figure


_RESIDUAL_AXES = (("n", "latents n"), ("tokens", "tokens D"))
