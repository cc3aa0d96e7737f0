"""Run folders made from a planted law, in the documented schema of record.json. Tests only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis.laws.joint import LatentsKTokensTilted, Law
from analysis.records.table import RunTable

# Close to what small sweeps of a real model gave, so that tests meet realistic conditioning.
PLANTED = LatentsKTokensTilted(
    **{"alpha": -0.92, "beta_k": 0.60, "beta_n": -0.06, "gamma": -0.139},
    **{"zeta": -1.13, "eta": -0.35, "D0": 64e3, "s": 0.71, "c": 0.55, "u": 0.2},
    **{"n0": 1024.0, "k0": 16.0},
)


class Cell(NamedTuple):
    n: int
    k: int
    tokens: int


def demo_cells(sizes: Iterable[int] = (256, 512, 1024, 2048, 4096)) -> list[Cell]:
    """n, k <= n/16, and two to three token budgets tied to n."""
    ladders = {256: (125, 250, 500), 512: (125, 250, 500), 4096: (500,)}
    return [
        Cell(n, k, thousand * 1000)
        for n in sizes
        for k in (4, 8, 16, 32, 64)
        if k <= n // 16
        for thousand in ladders.get(n, (250, 500, 1000))
    ]


def points_of(cells: Iterable[Cell]) -> dict[str, np.ndarray]:
    columns = np.array(list(cells), dtype=np.float64).T
    return dict(zip(Cell._fields, columns, strict=True))


def losses_of(law: Law, cells: list[Cell], noise: float, seed: int = 0) -> np.ndarray:
    errors = np.random.default_rng(seed).standard_normal(len(cells))
    return law.predict(points_of(cells)) * np.exp(noise * errors)


def fabricate_sweep(
    folder: Path, cells: list[Cell], *, law: Law = PLANTED, noise: float = 0.005, seed: int = 0
) -> Path:
    """Write one folder per cell with a finished record; returns `folder`."""
    for cell, loss in zip(cells, losses_of(law, cells, noise, seed), strict=True):
        write_record(folder, record(cell, float(loss)))
    return folder


def write_record(folder: Path, row: dict[str, Any]) -> Path:
    run = folder / row["run_id"]
    run.mkdir(parents=True, exist_ok=True)
    (run / "record.json").write_text(json.dumps(row))
    return run


def record(cell: Cell, loss: float, **changes: Any) -> dict[str, Any]:
    """A finished record; `changes` replace top-level, result or cost fields by name."""
    run_id = f"{cell.n:05d}{cell.k:03d}{cell.tokens // 1000:04d}"
    row: dict[str, Any] = {
        **{"schema_version": 1, "run_id": run_id, "sweep": "planted", "status": "done"},
        **{"result": _result(cell, loss), "cost": _cost(cell), "error": None, "warnings": []},
    }
    for name, value in changes.items():
        section = next((s for s in (row["result"], row["cost"]) if name in s), row)
        section[name] = value
    return row


def _result(cell: Cell, loss: float) -> dict[str, Any]:
    d_model, batch = 576, 256
    steps = cell.tokens // batch
    flops = 12.0 * cell.n * d_model * steps * batch
    return {
        **{"autoencoder": "topk", "n_latents": cell.n, "k": cell.k, "k_aux": 256},
        **{"dead_after_tokens": 4000, "d_model": d_model, "params": 2 * cell.n * d_model},
        **{"tokens": steps * batch, "tokens_requested": cell.tokens, "batch_tokens": batch},
        **{"steps": steps, "lr": 2e-3, "decay_fraction": 0.2, "seed": 0},
        **{"normalized_mse": loss, "normalized_mse_ema": loss * 1.001, "l0": float(cell.k)},
        **{"dead_fraction": 0.01, "silent_fraction_eval": 0.02, "train_normalized_mse": loss},
        **{"flops_dense": flops, "flops_sparse": flops / 5, "epochs": cell.tokens / 262144},
        **{"activations_id": "0123456789ab", "eval_hash": "f" * 64, "normalization": "unit_norm"},
        **{"subject_model": "SmolLM2-135M", "layer": 23, "numerics_version": 1},
    }


def _cost(cell: Cell) -> dict[str, Any]:
    seconds = cell.n * cell.tokens / 4e7
    return {
        **{"wall_s": seconds + 1.0, "train_s": seconds, "tokens_per_s": cell.tokens / seconds},
        **{"peak_memory_bytes": 400_000_000, "host": "planted-host", "cpu": "a cpu"},
        **{"device": "cpu", "started_at": "2026-01-01T00:00:00.000+00:00"},
        **{"finished_at": "2026-01-01T00:03:00.000+00:00", "commit": "0" * 40},
        **{"commit_dirty": False, "versions": {"python": "3.11.7", "torch": "2.13.0"}},
        **{"bit_exact": True, "engine": "torch", "kernels": "torch", "threads": 1, "mesh": [1, 1]},
        **{"attempts": 1, "resumed_at_step": 0},
    }


def planted_table(
    law: Law, cells: list[Cell], noise: float, seed: int = 0, seeds: Iterable[int] | None = None
) -> RunTable:
    """A table of planted losses: run i has name "run i", and seed 0 unless `seeds` says."""
    names = tuple(f"run {i}" for i in range(len(cells)))
    loss = losses_of(law, cells, noise, seed)
    labels = (0,) * len(cells) if seeds is None else tuple(seeds)
    return RunTable(points_of(cells), loss, names, "normalized_mse", labels)
