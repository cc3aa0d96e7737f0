"""Which runs no law is fitted to, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.records.columns import LOSSES, is_number, numbers
from analysis.records.mixtures import RECIPE
from analysis.records.sparsity import COORDINATES, coordinates
from analysis.records.table import Dropped
from scaling.runs.record import Status

# Beyond this share of dead latents a run shows a failure of training and not a size. One measure
# is not enough: dead_fraction depends on its window, and a rare latent may be silent on the few
# held-out tokens without being dead.
MOST_DEAD = 0.5
DEAD = "its latents are dead"
DEATH_MEASURES = ("dead_fraction", "silent_fraction_eval")


def exclusions(frame: pd.DataFrame) -> tuple[Dropped, ...]:
    """run_id and reason of each run that is not fitted; columns as in `load_runs`."""
    left_out = frame.loc[frame["excluded"] != ""]
    pairs = zip(left_out["run_id"], left_out["excluded"], strict=True)
    return tuple(Dropped(str(run), str(reason)) for run, reason in pairs)


def with_dead(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` of `load_runs` with runs whose latents are mostly dead in use.

    For comparisons: there a dead latent is what a treatment or an architecture came to.
    """
    revived = ["" if str(reason).startswith(DEAD) else reason for reason in frame["excluded"]]
    return frame.assign(excluded=revived)


def reasons(frame: pd.DataFrame, loss: str) -> list[str]:
    """Why each row is not fitted, "" for a usable run. `frame` has the column `loss` already."""
    dead = np.minimum(*(numbers(frame, name) for name in DEATH_MEASURES))  # NaN: not known dead
    columns = ("run_id", "status", "folder", "source", "error", "loss", *COORDINATES)
    kind = ("autoencoder", "l0", "l0_ema", *LOSSES, *RECIPE)
    names = [name for name in (*columns, *kind, *DEATH_MEASURES) if name in frame]
    rows = zip(*(frame[name].tolist() for name in names), strict=True)
    found: list[str] = []
    seen: dict[object, str] = {}
    for values, share in zip(rows, dead, strict=True):
        row = dict(zip(names, values, strict=True))
        reason = _reason(row, loss, share) or _copy_of(row, seen)
        found.append(reason)
    return found


def _reason(row: dict[str, Any], loss: str, dead_share: float) -> str:
    if row["status"] != Status.done:
        return f"status is {row['status']}" + (f" ({row['error']})" if row["error"] else "")
    needed = coordinates(row, loss)
    missing = [name for name in needed if not is_number(row.get(name))]
    if missing:
        return f"the record lacks {', '.join(missing)}"
    below = [name for name in needed if name != "seed" and not 0 < row[name] < 2**62]
    if below:
        return f"{below[0]} is {row[below[0]]}, which no law can take"
    return _loss_reason(row["loss"], loss) or _death_reason(row, dead_share)


def _loss_reason(value: Any, loss: str) -> str:
    if not is_number(value):
        return f"{loss} is null"
    if value <= 0:
        return f"{loss} is {value:g}, not above 0"
    if value >= 1:
        return f"{loss} is {value:.3g}: no better than predicting the mean"
    return ""


def _death_reason(row: dict[str, Any], dead_share: float) -> str:
    if not dead_share > MOST_DEAD:
        return ""
    shares = " and ".join(f"{name} {row[name]:.0%}" for name in DEATH_MEASURES)
    return f"{DEAD}: {shares}, both above {MOST_DEAD:.0%}"


def _copy_of(row: dict[str, Any], seen: dict[object, str]) -> str:
    """One run_id twice, or two runs of one recipe equal to the last digit, in both losses: counted
    once. Of unlike recipes they are two: that a treatment had no effect is a result."""
    # A null k is a NaN in a column of numbers, and no NaN equals another.
    values = [row.get(name) for name in (*COORDINATES, "l0", "loss", *LOSSES)]
    recipe = [repr(row.get(name)) for name in ("autoencoder", *RECIPE)]
    result = (*(value if is_number(value) else None for value in values), *recipe)
    identities: Sequence[object] = (row["run_id"], result)
    first = next((seen[identity] for identity in identities if identity in seen), "")
    for identity in identities:
        seen.setdefault(identity, _place(row))
    return f"copy of the run in {first}" if first else ""


def _place(row: dict[str, Any]) -> str:
    return Path(row["folder"]).name if row["folder"] else f"{row['source']} ({row['run_id']})"
