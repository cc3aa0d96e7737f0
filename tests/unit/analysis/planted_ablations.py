"""Run folders that differ in one key, with their plans. Tests only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fabricate import Cell, record, write_record

TOKENS = 1_000_000


def words(**changes: Any) -> dict[str, dict[str, Any]]:
    """A configuration as a plan holds it; changes by name, in the section that has the name."""
    config: dict[str, dict[str, Any]] = {
        "autoencoder": {"b_enc": True, "dead_treatment": "auxk", "k_aux": None},
        "train": {"tokens": TOKENS, "lr": None, "lr_scale": 1.0, "adam_eps": 6.25e-10},
        "numerics": {"precision": "float32"},
    }
    for name, value in changes.items():
        section = "autoencoder" if name in config["autoencoder"] else "train"
        config[section][name] = value
    return config


def ablate(
    folder: Path,
    levels: Sequence[tuple[dict[str, Any], float]],
    *,
    sizes: Sequence[int] = (512, 1024),
    seeds: Sequence[int] = (0, 1, 2),
    results: Mapping[float, Mapping[str, Any]] | None = None,
    noise: float = 0.001,
    first: int = 0,
) -> Path:
    """A run for each n, seed and level: (changed words, factor on the loss). Seeds err together by
    1% and alone by `noise`; `results` are changed result fields, by the level's factor, `first` the
    number that run ids follow."""
    rng = np.random.default_rng(5)
    count = first
    for n in sizes:
        for seed in seeds:
            together = 0.01 * rng.standard_normal()
            for changes, factor in levels:
                count += 1
                loss = 0.3 * (n / 512) ** -0.2 * factor
                loss *= np.exp(together + noise * rng.standard_normal())
                row = record(Cell(n, 16, TOKENS), loss, run_id=f"{count:012x}", seed=seed)
                row["result"] |= (results or {}).get(factor, {})
                config = words(**changes)
                config["autoencoder"] |= {"n_latents": n, "k": 16}
                config["train"]["seed"] = seed
                settled = {"k_aux": 256, "lr": 2e-3 * factor}
                identity = {"autoencoder": {"name": "topk", **settled}, "train": settled}
                plan = {"config": config, "identity": identity}
                (write_record(folder, row) / "plan.json").write_text(json.dumps(plan))
    return folder
