"""One look for all figures of a report.

Text and axes are drawn in INK, which the report's page replaces by the color of its text, so
that one drawing reads on light and on dark. Line colors have contrast on both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.counts import short_count
from analysis.laws.forms import Array
from analysis.palette import KINDS, ORDERED
from analysis.records.table import RunTable
from analysis.study.study import Study

INK = "#010203"
_SCALE = LinearSegmentedColormap.from_list("ordered", ORDERED)
STYLE: dict[Any, Any] = {
    **{"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK},
    **{"xtick.color": INK, "ytick.color": INK, "axes.titlesize": 10, "font.size": 9},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"svg.fonttype": "none", "svg.hashsalt": "analysis", "lines.linewidth": 1.4},
}
COLUMNS = 3
_DPI = 160  # 1,180 pixels wide: sharp where a README shows it at 800
MARKERS = "osD^vPX*"
TICKS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)  # of each decade of loss
_WIDTH = 7.4  # inches
_T = TypeVar("_T")


def panel_grid(
    count: int, height: float = 2.9, *, share_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of one width with `count` panels, at most COLUMNS in a row of `height` inches."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH, rows * height), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=share_y, squeeze=False).ravel()
    for spare in grid[count:]:
        spare.remove()
    for first in grid[:count:columns]:
        first.set_ylabel("normalized MSE, held out")
    return figure, list(grid[:count])


def save_figures(figures: Mapping[str, Figure | None], folder: Path) -> None:
    """Each as NAME.png; None is a figure that there is no need of. OSError as the disk has it."""
    for name, drawing in figures.items():
        if drawing is not None:
            drawing.savefig(folder / f"{name}.png", dpi=_DPI, facecolor="white")


def held_out(study: Study) -> RunTable | None:
    fitted = study.headline.best_known
    return fitted.holdout.table if fitted is not None and fitted.holdout is not None else None


def plain(text: str) -> str:
    """Text from records as it is: between dollars matplotlib would read a formula."""
    return text.replace("$", r"\$")


def marks(axes: Axes, x: Array, y: Array, color: str, *, filled: bool, alpha: float = 1.0) -> None:
    face = color if filled else "none"
    axes.plot(x, y, "o", color=color, markerfacecolor=face, markersize=4.5, alpha=alpha)


def colors_of(levels: Iterable[float]) -> dict[float, str]:
    unique = np.unique(np.asarray(list(levels), dtype=np.float64)).tolist()
    shades = np.linspace(0.0, 1.0, len(unique)) if len(unique) > 1 else [0.0]
    return {level: to_hex(_SCALE(shade)) for level, shade in zip(unique, shades, strict=True)}


def looks_of(kinds: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Color and marker of each kind, in order; both, for readers who cannot tell colors."""
    return {
        kind: (KINDS[i % len(KINDS)], MARKERS[i % len(MARKERS)]) for i, kind in enumerate(kinds)
    }


def name_kinds(axes: Axes, looks: dict[str, tuple[str, str]], notes: Sequence[Line2D] = ()) -> None:
    """The legend of kinds beside the axes; `notes` are further handles."""
    handles = [*kind_handles(looks), *notes]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def kind_handles(looks: dict[str, tuple[str, str]]) -> list[Line2D]:
    return [
        Line2D([], [], color=color, marker=marker, markersize=4.5, label=plain(kind))
        for kind, (color, marker) in looks.items()
    ]


def dodge(level: float, levels: Sequence[float]) -> float:
    """A slight shift along a log axis, so that points of several k do not hide each other."""
    return float(np.exp(0.05 * (levels.index(level) - (len(levels) - 1) / 2)))


def fit_limits(axes: Axes, runs: RunTable) -> None:
    """Limits from the runs: the band of a poorly known law may leave the drawing."""
    axes.set_ylim(runs.loss.min() / 1.12, runs.loss.max() * 1.12)


def spread(levels: Sequence[_T], most: int) -> list[_T]:
    """All levels, or `most` of them from the first to the last."""
    if len(levels) <= most:
        return list(levels)
    return [levels[i] for i in np.linspace(0, len(levels) - 1, most).round().astype(int)]


def log_x(axes: Axes, values: Array, label: str) -> None:
    levels = spread(np.unique(values).tolist(), 6)
    axes.set_xscale("log")
    margin = max(values.max() / values.min(), 2.0) ** 0.09
    axes.set_xlim(values.min() / margin, values.max() * margin)
    axes.xaxis.set_major_locator(FixedLocator(levels))
    axes.xaxis.set_minor_locator(NullLocator())
    text = short_count if label.startswith("tokens") else "{:.0f}".format
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: text(v)))
    axes.set_xlabel(label)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)


def log_log(axes: Axes, values: Array, label: str) -> None:
    log_x(axes, values, label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
    axes.grid(which="both", color=INK, alpha=0.12, linewidth=0.6)


def legend(
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
