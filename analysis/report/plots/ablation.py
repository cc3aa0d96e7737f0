"""Loss and dead latents against the levels of one key, a line per cell."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from analysis.ablation.found import Ablation
from analysis.report.plots.style import (
    INK,
    STYLE,
    TICKS,
    kind_handles,
    looks_of,
    panel_grid,
    plain,
    spread,
)

_MOST_CELLS = 8
_STEP = 0.08  # between cells, in steps of levels
_ROW, _MARK = 96, 7  # characters in a row of the legend, and what a mark takes of them
_LONG = 9  # characters of a level, beyond which labels would run into each other


def ablation(found: Ablation) -> Figure:
    """Three panels: every seed's loss, the difference to the usual level with its interval, and the
    mean dead fraction (left out where no record has one)."""
    cells = spread([*found.cells], _MOST_CELLS)
    looks = looks_of(cells)
    dead = any(
        np.isfinite(at.measured["dead_fraction"])
        for levels in found.cells.values()
        for at in levels.values()
    )
    with mpl.rc_context(STYLE):
        figure, panels = panel_grid(3 if dead else 2, 3.2, share_y=False)
        for place, cell in enumerate(cells):
            _draw_losses(panels[0], found, cell, looks[cell])
            shift = _STEP * (place - (len(cells) - 1) / 2)
            _draw_differences(panels[1], found, cell, looks[cell], shift)
            if dead:
                _draw_dead(panels[2], found, cell, looks[cell])
        _loss_axis(panels[0])
        _titles(panels, found)
        for axes in panels:
            _level_axis(axes, found)
        _name_cells(figure, looks)
    return figure


def _name_cells(figure: Figure, looks: dict[str, tuple[str, str]]) -> None:
    """Below the panels: the words of a cell may be long."""
    columns = max(1, min(4, _ROW // (max(map(len, looks)) + _MARK)))
    figure.legend(handles=kind_handles(looks), loc="outside lower center", ncols=columns)


def _titles(panels: list[Axes], found: Ablation) -> None:
    for axes, title in zip(
        panels, ("loss", f"against {_name(found)} = {found.usual}", "dead latents"), strict=False
    ):
        axes.set_title(plain(title))
    for axes in panels[1:]:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    panels[1].axhline(0.0, color=INK, linewidth=0.8, alpha=0.5)
    if len(panels) > 2:
        panels[2].set_ylim(bottom=0.0)


def _name(found: Ablation) -> str:
    """The key without its section; several that change as one are shown as the first."""
    return found.key.partition(" ")[0].rpartition(".")[2]


def _places(found: Ablation, cell: str) -> list[tuple[int, str]]:
    return [(i, level) for i, level in enumerate(found.levels) if level in found.cells[cell]]


def _draw_losses(axes: Axes, found: Ablation, cell: str, look: tuple[str, str]) -> None:
    color, marker = look
    places = _places(found, cell)
    means = [found.cells[cell][level].loss for _, level in places]
    axes.plot([x for x, _ in places], means, "-", color=color)
    for x, level in places:
        losses = np.exp([*found.cells[cell][level].seeds.values()])
        axes.plot([x] * len(losses), losses, marker, color=color, markersize=4.5, alpha=0.8)


def _draw_differences(
    axes: Axes, found: Ablation, cell: str, look: tuple[str, str], shift: float
) -> None:
    """`shift` puts cells beside each other, so that their intervals can be told apart."""
    color, marker = look
    for x, level in _places(found, cell):
        apart = found.difference(cell, level)
        if apart is None:
            continue
        ends = apart.share_interval
        bars = None if ends is None else [[apart.share - ends.low], [ends.high - apart.share]]
        style = {"color": color, "elinewidth": 1, "markersize": 4.5}
        axes.errorbar(x + shift, apart.share, yerr=bars, fmt=marker, **style)


def _draw_dead(axes: Axes, found: Ablation, cell: str, look: tuple[str, str]) -> None:
    color, marker = look
    places = _places(found, cell)
    shares = [found.cells[cell][level].measured["dead_fraction"] for _, level in places]
    axes.plot([x for x, _ in places], shares, f"-{marker}", color=color, markersize=4.5)


def _loss_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))


def _level_axis(axes: Axes, found: Ablation) -> None:
    """Levels at equal steps: they need be no numbers, and of numbers zero may be one."""
    crowded = len(found.levels) > 4 or any(len(level) > _LONG for level in found.levels)
    axes.set_xticks(range(len(found.levels)), [plain(level) for level in found.levels])
    if crowded:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(found.levels) - 0.5)
    axes.set_xlabel(plain(_name(found)))
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
