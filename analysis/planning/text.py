"""Tables for a terminal, and numbers as they read in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.counts import short_count
from analysis.uncertainty.interval import Interval

_WHOLE_BELOW = 1e6
_SHORT_BELOW = 1e12  # FLOPs are beyond every suffix that reads well


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, numbers to the right; no trailing blanks."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (header, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def size(value: float) -> str:
    """A count with few digits: 65536 as it is, 1.2M, 3e+13; "beyond" without a finite value."""
    if not np.isfinite(value) or value <= 0:
        return "beyond"
    return f"{value:.0f}" if value < _WHOLE_BELOW else tokens(value)


def tokens(value: float) -> str:
    """Tokens as 500k or 1.234M, to four digits."""
    if not np.isfinite(value) or value >= _SHORT_BELOW:
        return f"{value:.4g}"
    return short_count(float(f"{value:.4g}"))


def of_axis(axis: str, value: float) -> str:
    """A coordinate as it reads: 4096 latents, 125k tokens, 2.21e+11 FLOPs."""
    if axis == "flops":
        return f"{value:.3g}"
    return tokens(value) if axis == "tokens" else size(value)


def between(interval: Interval | None, row: int) -> str:
    """ "0.2512 to 0.2604", or "-" where there is no interval."""
    if interval is None:
        return "-"
    return f"{float(interval.low[row]):.4g} to {float(interval.high[row]):.4g}"
