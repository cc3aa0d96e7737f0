"""What a run would cost: FLOPs under a convention, or core-seconds as measured runs took them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from analysis.errors import TableError
from analysis.laws.forms import Array, Points
from analysis.planning.compute import Convention
from analysis.records.columns import numbers

_LEAST_RUNS = 4


class Cost(Protocol):
    """Prices runs, in one unit."""

    @property
    def unit(self) -> str: ...

    def of(self, points: Points) -> Array:
        """Of runs at points with axes n, k and tokens, [M]."""
        ...


@dataclass(frozen=True)
class FlopsCost:
    """Training FLOPs: exact, and blind to everything but the matrix products."""

    convention: Convention

    @property
    def unit(self) -> str:
        return f"FLOPs ({self.convention.name})"

    def of(self, points: Points) -> Array:
        return self.convention.per_token(points["n"], points["k"]) * points["tokens"]


@dataclass(frozen=True)
class CoreSecondsCost:
    """start + tokens (base + per_latent n + per_active k) core-seconds, fitted to measured runs."""

    start: float
    base: float
    per_latent: float
    per_active: float
    rms_error: float  # relative, over the runs it was fitted to
    n_runs: int
    unit: str = "core-seconds"

    def of(self, points: Points) -> Array:
        rate = self.base + self.per_latent * points["n"] + self.per_active * points["k"]
        return self.start + rate * points["tokens"]


def measured_cost(frame: pd.DataFrame) -> CoreSecondsCost:
    """From the runs in use of `load_runs`: wall seconds times threads times ranks.

    Relative errors are made small, so that short runs count as much as long ones. TableError
    where fewer than four runs say how long they took.
    """
    used = frame.loc[frame["excluded"] == ""]
    columns = {name: numbers(used, name) for name in ("n_latents", "k", "tokens", "wall_s")}
    cores = np.nan_to_num(numbers(used, "threads"), nan=1.0) * _ranks(used)
    seconds = columns["wall_s"] * np.maximum(cores, 1.0)
    known = np.isfinite(seconds) & (seconds > 0)
    if known.sum() < _LEAST_RUNS:
        raise TableError(
            f"{known.sum()} runs say how long they took (wall_s); a cost per run needs at least "
            f"{_LEAST_RUNS}. Give the budget in FLOPs, --budget-flops."
        )
    n, k, tokens = (columns[name][known] for name in ("n_latents", "k", "tokens"))
    design = np.column_stack([np.ones_like(n), tokens, tokens * n, tokens * k])
    design /= seconds[known, None]
    # nnls is not scaled: columns span ten decades.
    scale = np.linalg.norm(design, axis=0)
    rates, _ = nnls(design / scale, np.ones(len(n)))
    rates = rates / scale
    error = float(np.sqrt(np.mean((design @ rates - 1.0) ** 2)))
    return CoreSecondsCost(*rates.tolist(), rms_error=error, n_runs=int(known.sum()))


def _ranks(used: pd.DataFrame) -> Array:
    meshes = used["mesh"] if "mesh" in used else [None] * len(used)
    sizes = [np.prod(mesh) if isinstance(mesh, list | tuple) else 1.0 for mesh in meshes]
    return np.array(sizes, dtype=np.float64)
