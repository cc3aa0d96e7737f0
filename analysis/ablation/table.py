"""Ablations as rows of text and as JSON."""

from __future__ import annotations

import math
from typing import Any

from analysis.ablation.found import Ablation, Level
from analysis.uncertainty.seeds import ends_text


def header(found: Ablation) -> tuple[str, ...]:
    start = ("runs", found.key, "loss", "95%", f"against {found.usual}", "95%", "seeds")
    ends = (*(("L0",) if found.outcome else ()), *(("rate",) if _tuned(found) else ()))
    return (*start, "averaged weights", "dead", *ends)


def _tuned(found: Ablation) -> bool:
    return any(at.tuned for levels in found.cells.values() for at in levels.values())


def rows(found: Ablation) -> list[tuple[str, ...]]:
    """A line per cell and level, levels in order."""
    return [
        _row(found, cell, level)
        for cell, levels in found.cells.items()
        for level in found.levels
        if level in levels
    ]


def _row(found: Ablation, cell: str, level: str) -> tuple[str, ...]:
    at, apart = found.cells[cell][level], found.difference(cell, level)
    over = apart.share_interval if apart else None
    dead = at.measured["dead_fraction"]
    return (
        *(cell, level, f"{at.loss:.4g}", ends_text(found.interval(cell, level), "{:.4g}")),
        f"{apart.share:+.2%}" if apart else "",
        ends_text(over, "{:+.2%}") if apart else "",
        *(str(len(at.seeds)), _number(at.measured["normalized_mse_ema"])),
        "" if math.isnan(dead) else f"{dead:.1%}",
        *((_number(at.measured["l0"]),) if found.outcome else ()),
        *((at.tuned,) if _tuned(found) else ()),
    )


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def ablation_json(found: Ablation) -> dict[str, Any]:
    """All of it; a null interval says that there are too few seeds for one."""
    return {
        **{"key": found.key, "levels": list(found.levels), "usual": found.usual},
        "sparsity_is_an_outcome": found.outcome,
        "cells": [
            {"cell": cell, "level": level, **_level_json(found, cell, level, at)}
            for cell, levels in found.cells.items()
            for level, at in levels.items()
        ],
    }


def _level_json(found: Ablation, cell: str, level: str, at: Level) -> dict[str, Any]:
    ends, apart = found.interval(cell, level), found.difference(cell, level)
    over = apart.share_interval if apart else None
    measured = {name: None if math.isnan(v) else v for name, v in at.measured.items()}
    return {
        **{**measured, "loss": at.loss, "seeds": len(at.seeds), "runs": list(at.runs)},
        **{"tuned": at.tuned, "ci95": list(ends) if ends else None},
        "over_usual": apart.share if apart else None,
        "over_usual_ci95": list(over) if over else None,
    }
