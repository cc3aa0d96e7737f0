"""How counts of tokens read in text and figures."""

from __future__ import annotations

_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
# 499,968 tokens are 500k in whole batches; a count is written with the fewest digits this near.
_NEAR = 1e-3


def short_count(value: float) -> str:
    """500000 -> "500k", 999936 -> "1M", 1234567 -> "1.235M"; below 1000 as it is."""
    if not value >= 1e3:
        return f"{value:g}"
    rounded = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    near = next((r for r in rounded if abs(r / value - 1.0) <= _NEAR), value)
    # Rounded before the unit is chosen: else 999,936 would be 1000k.
    size, suffix = next(unit for unit in _UNITS if near >= unit[0])
    return f"{near / size:.15g}{suffix}"
