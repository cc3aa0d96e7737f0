"""plan.json beside a record: what a run was asked to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_plan(folder: str) -> dict[str, Any]:
    """The plan of a run's folder; empty where there is none to read ("": a row of a table)."""
    if not folder:
        return {}
    try:
        plan = json.loads((Path(folder) / "plan.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return plan if isinstance(plan, dict) else {}
