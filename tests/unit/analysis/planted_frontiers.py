"""Run folders of architectures whose frontier of loss against L0 is planted. Tests only.

ln loss = ln level - SLOPE ln(L0 / 32) + BEND ln(L0 / 32)^2 - B_N ln(n / 1024), and each seed adds
an error that its runs of one n share, as runs of one seed do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from fabricate import Cell, record, write_record

SLOPE, BEND, B_N = 0.45, 0.03, 0.2
LEVELS = {"topk": 0.20, "relu": 0.25, "gated": 0.21}
PENALTIES = (3e-4, 1e-3, 3e-3, 1e-2)
TOKENS = 1_000_000


def planted_loss(arm: str, n: float, l0: float) -> float:
    x = np.log(l0 / 32)
    power = np.log(LEVELS[arm]) - SLOPE * x + BEND * x**2 - B_N * np.log(n / 1024)
    return float(np.exp(power))


def l0_of(penalty: float, n: float) -> float:
    """Falls with the penalty, and rises with n: no L0 is that of another run."""
    return 60.0 * (penalty / 1e-3) ** -0.5 * (n / 1024) ** 0.1


def plant(
    folder: Path,
    arms: Sequence[str] = ("topk", "relu", "gated"),
    sizes: Sequence[int] = (512, 1024, 2048),
    seeds: Sequence[int] = (0, 1, 2),
    noise: float = 0.004,
    rates: Mapping[float, float] | None = None,
) -> Path:
    """Write one folder per run; `rates` are learning rates with the factor each has on loss."""
    rng = np.random.default_rng(7)
    count = 0
    for arm in arms:
        for n in sizes:
            for seed in seeds:
                error = noise * rng.standard_normal()
                for rate, factor in (rates or {2e-3: 1.0}).items():
                    for setting in range(4):
                        count += 1
                        _write(folder, arm, n, (seed, setting, rate), np.exp(error) * factor, count)
    return folder


def ask_for_l0(folder: Path) -> None:
    """Make the penalized runs there such as were asked for an L0 each, at one penalty."""
    for path in folder.glob("*/record.json"):
        row = json.loads(path.read_text())
        if (penalty := row["result"].get("penalty")) is not None:
            row["result"] |= {"penalty": 0.3, "target_l0": round(l0_of(penalty, 1024))}
            path.write_text(json.dumps(row))


def _write(
    folder: Path, arm: str, n: int, how: tuple[int, int, float], factor: float, count: int
) -> None:
    seed, setting, rate = how
    given = arm == "topk"
    k, penalty = 8 * 2**setting, PENALTIES[setting]
    l0 = float(k) if given else l0_of(penalty, n) * (1 + 0.01 * seed)
    row = record(Cell(n, k, TOKENS), planted_loss(arm, n, l0) * factor, run_id=f"{count:012x}")
    row["result"] |= {"autoencoder": arm, "l0": l0, "seed": seed, "lr": rate}
    if not given:
        row["result"] |= {"k": None, "k_aux": 0, "dead_treatment": "none", "penalty": penalty}
    write_record(folder, row)
