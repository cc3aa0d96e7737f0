"""One color per run: the hue tells k or the penalty, the shade n: looks alone tell a line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from analysis.dashboards.cells import Cell
from analysis.palette import ORDERED

# How far the smallest n is mixed with white: further, and it would vanish on a light page.
_PALEST = 0.55


def run_colors(cells: Sequence[Cell]) -> dict[str, str]:
    """Color of each run id, as #rrggbb. Levels are ranked, not scaled: they are powers of two."""
    hue, shade = _ranks(cell.sparsity for cell in cells), _ranks(cell.n for cell in cells)
    return {cell.run_id: _color(hue[cell.sparsity], shade[cell.n]) for cell in cells}


def _ranks(levels: Iterable[float]) -> dict[float, float]:
    """Levels spread evenly over 0 to 1; a single one is 1, the full color."""
    unique = sorted(set(levels), reverse=True)
    last = max(len(unique) - 1, 1)
    return {level: 1.0 - rank / last for rank, level in enumerate(unique)}


def _color(hue: float, shade: float) -> str:
    place = hue * (len(ORDERED) - 1)
    below = min(int(place), len(ORDERED) - 2)
    full = _mix(_rgb(ORDERED[below]), _rgb(ORDERED[below + 1]), place - below)
    red, green, blue = _mix(full, (255.0, 255.0, 255.0), _PALEST * (1.0 - shade))
    return f"#{round(red):02x}{round(green):02x}{round(blue):02x}"


def _rgb(color: str) -> tuple[float, ...]:
    return tuple(float(int(color[i : i + 2], 16)) for i in (1, 3, 5))


def _mix(a: tuple[float, ...], b: tuple[float, ...], share_of_b: float) -> tuple[float, ...]:
    return tuple((1.0 - share_of_b) * x + share_of_b * y for x, y in zip(a, b, strict=True))
