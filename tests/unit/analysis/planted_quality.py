"""Run folders that were evaluated, with metrics planted over n, k and seeds. Tests only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from fabricate import PLANTED, Cell, losses_of, record, write_record

from analysis.quality.metrics import Quality
from analysis.quality.values import Values, values_of
from analysis.records.load import load_runs

SIZES, SPARSITIES, SEEDS = (512, 1024, 2048, 4096), (8, 16, 32), (0, 1)
TOKENS = 1_000_000
Planted = Callable[[float, float], float]
"""Of n and k."""


def plant_quality(
    folder: Path,
    metrics: Mapping[str, Planted],
    *,
    noise: float = 0.0,
    sizes: Sequence[int] = SIZES,
    seeds: Sequence[int] = SEEDS,
    measured_as: Mapping[str, str] | None = None,
    baselines: Mapping[str, Mapping[str, Planted]] | None = None,
) -> Path:
    """One folder per n, k and seed; each seed multiplies every metric by its own error. Those with
    baselines have a standard error of 0.03."""
    rng = np.random.default_rng(5)
    for n in sizes:
        for k in SPARSITIES:
            for seed in seeds:
                cell = Cell(n, k, TOKENS)
                loss = float(losses_of(PLANTED, [cell], 0.0)[0]) * np.exp(0.002 * rng.normal())
                row = record(cell, loss, seed=seed)
                row["run_id"] += f"{seed}"
                run = write_record(folder, row)
                error = np.exp(noise * rng.standard_normal())
                numbers = {name: float(at(n, k) * error) for name, at in metrics.items()}
                entries = {name: {"measured_as": way} for name, way in (measured_as or {}).items()}
                beside = {
                    name: {of: {"value": float(at(n, k))} for of, at in of_metric.items()}
                    for name, of_metric in (baselines or {}).items()
                }
                errors = {name: {"value": 0.03, "over": "documents"} for name in beside}
                drawn = {"drawn": {"standard_errors": errors, "baselines": beside}}
                content = {**numbers, "metrics": {**entries, **(drawn if beside else {})}}
                (run / "evaluation.json").write_text(json.dumps(content))
    return folder


def values_at(folder: Path, quality: Quality) -> Values:
    found = values_of(load_runs(folder), quality, TOKENS)
    assert isinstance(found, Values), found
    return found


def frame_of(rows: Sequence[tuple[float, float, int, float]], column: str) -> pd.DataFrame:
    """As load_runs would give it, of (n, k, seed, value)."""
    n, k, seed, value = zip(*rows, strict=True)
    names = [f"run {place}" for place in range(len(rows))]
    same = {"tokens": TOKENS, "tokens_requested": TOKENS, "excluded": ""}
    columns = {"run_id": names, "n_latents": n, "k": k, "seed": seed, column: value}
    return pd.DataFrame({**columns, **{name: [one] * len(rows) for name, one in same.items()}})
