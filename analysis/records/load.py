"""Run folders of a sweep as one DataFrame: a row per run, and why a run is not fitted.

Columns: run_id, sweep, status, folder, error, every result and cost field of record.json under
its own name (docs/records.md), `loss` (the chosen column) and `excluded` ("" for a usable run,
else the reason).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.laws.forms import Array
from analysis.records.table import Dropped, RunTable, table_from_frame
from scaling.runs.record import Record, Status, problems_of

DEFAULT_LOSS = "normalized_mse"
# Beyond this share of dead latents a run shows a failure of training and not a size. One measure
# is not enough: dead_fraction depends on its window, and a rare latent may be silent on the few
# held-out tokens without being dead.
MOST_DEAD = 0.5
DEATH_MEASURES = ("dead_fraction", "silent_fraction_eval")
# Runs that differ in one of these have losses that cannot be compared, or not on one law.
_SAME_FOR_ALL = (
    *("numerics_version", "activations_id", "eval_hash", "normalization"),
    *("autoencoder", "d_model", "subject_model", "layer"),
    *("dead_after_tokens", "k_aux", "decay_fraction"),
)
# Those of the recipe can be trained again with one value; the others are another experiment.
_RECIPE = {
    "dead_after_tokens": "autoencoder.dead_after_tokens",
    "k_aux": "autoencoder.k_aux",
    "decay_fraction": "train.decay_fraction",
}
_COORDINATES = ("n_latents", "k", "tokens", "seed")
# Rounding to whole batches is no other budget: below this relative difference the budget asked
# for names the run, so that runs of several batch sizes share one.
_SAME_BUDGET = 0.01


def load_runs(path: Path, *, loss: str = DEFAULT_LOSS) -> pd.DataFrame:
    """Read every PATH/*/record.json. TableError where there is none, or where runs cannot mix.

    A record that cannot be read does not stop the others: it is a row with status "unreadable".
    """
    if not path.is_dir():
        raise TableError(f"{path} is not a folder; give the folder of a sweep, RUNS_DIR/SWEEP.")
    files = sorted(path.glob("*/record.json"))
    if not files:
        raise TableError(
            f"{path} holds no run (no */record.json); give the folder of a sweep, RUNS_DIR/SWEEP, "
            "after at least one run was started."
        )
    frame = pd.DataFrame([_row(file) for file in files])
    frame["loss"] = _loss_of(frame, loss)
    frame["excluded"] = _reasons(frame, loss)
    refuse_mixtures(frame.loc[frame["excluded"] == ""])
    return frame


def runs_table(frame: pd.DataFrame, loss: str = DEFAULT_LOSS) -> RunTable:
    """The usable runs of `load_runs`. TableError where none is left."""
    usable = frame.loc[frame["excluded"] == ""]
    dropped = exclusions(frame)
    if usable.empty:
        reasons = "; ".join(sorted({reason for _, reason in dropped}))
        raise TableError(
            f"none of the {len(frame)} runs can be used ({reasons}); finish the sweep by calling "
            "it again, then repeat this."
        )
    columns = {name: usable[name] for name in ("run_id", "n_latents", "k", "seed")}
    table = table_from_frame(
        pd.DataFrame({**columns, "tokens": budgets(usable), loss: usable["loss"]}),
        source="the sweep",
        loss=loss,
    )
    return replace(table, dropped=dropped)


def exclusions(frame: pd.DataFrame) -> tuple[Dropped, ...]:
    left_out = frame.loc[frame["excluded"] != ""]
    pairs = zip(left_out["run_id"], left_out["excluded"], strict=True)
    return tuple(Dropped(str(run), str(reason)) for run, reason in pairs)


def refuse_mixtures(usable: pd.DataFrame) -> None:
    """TableError where runs differ in what makes their losses comparable."""
    for name in (name for name in _SAME_FOR_ALL if name in usable):
        counts = Counter(map(_value_text, usable[name])).most_common()
        if len(counts) > 1:
            found = ", ".join(f"{value} ({count} runs)" for value, count in counts)
            key = _RECIPE.get(name)
            again = f"train all runs with one {key}, or " if key else ""
            raise TableError(
                f"the runs mix {name}: {found}. Their losses do not lie on one law; {again}keep "
                "each kind in a sweep folder of its own and analyze them apart."
            )


def _value_text(value: Any) -> str:
    if value is None or value != value:  # NaN: pandas has put it where a record has none
        return "not recorded"
    # A column with gaps turns whole numbers into floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _row(file: Path) -> dict[str, Any]:
    run_id, folder = file.parent.name, str(file.parent)
    try:
        record = Record.from_json(json.loads(file.read_text()))
        _refuse_mistyped(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {
            **{"run_id": run_id, "status": "unreadable", "folder": folder},
            "error": f"{file.name}: {type(error).__name__}: {error}",
        }
    error = f"{record.error.type}: {record.error.message}" if record.error else ""
    status = str(record.status)
    fields = {"run_id": record.run_id, "sweep": record.sweep, "status": status, "folder": folder}
    return {**record.cost, **record.result, **fields, "error": error}


def _refuse_mistyped(record: Record) -> None:
    """ValueError where a value has another type than the schema gives it."""
    if not (isinstance(record.result, dict) and isinstance(record.cost, dict)):
        raise ValueError("result and cost must be objects")
    mistyped = [problem for problem in problems_of(record) if problem.endswith("wrong type")]
    if mistyped:
        raise ValueError(mistyped[0])


def _loss_of(frame: pd.DataFrame, loss: str) -> Array:
    if Status.done in set(frame["status"]) and loss not in frame:
        raise TableError(
            f"the records have no result field {loss}; choose normalized_mse or normalized_mse_ema."
        )
    return numbers(frame, loss)


def numbers(frame: pd.DataFrame, column: str) -> Array:
    """Column as float64 [M]; NaN where it is absent, null or no number."""
    if column not in frame:
        return np.full(len(frame), np.nan)
    return np.array([float(v) if _is_number(v) else np.nan for v in frame[column]])


def budgets(usable: pd.DataFrame) -> Array:
    """The token budget that names each run, [M]: what was asked for, where that was trained."""
    trained, asked = numbers(usable, "tokens"), numbers(usable, "tokens_requested")
    return np.where(np.abs(asked / trained - 1.0) < _SAME_BUDGET, asked, trained)


def _reasons(frame: pd.DataFrame, loss: str) -> list[str]:
    dead = np.minimum(*(numbers(frame, name) for name in DEATH_MEASURES))  # NaN: not known dead
    reasons: list[str] = []
    seen: dict[object, str] = {}
    for row, share in zip(frame.to_dict("records"), dead, strict=True):
        reason = _reason(row, loss, share) or _copy_of(row, seen)
        reasons.append(reason)
    return reasons


def _reason(row: dict[Any, Any], loss: str, dead_share: float) -> str:
    if row["status"] != Status.done:
        return f"status is {row['status']}" + (f" ({row['error']})" if row["error"] else "")
    missing = [name for name in _COORDINATES if not _is_number(row.get(name))]
    if missing:
        return f"the record lacks {', '.join(missing)}"
    below = [name for name in ("n_latents", "k", "tokens") if not 0 < row[name] < 2**62]
    if below:
        return f"{below[0]} is {row[below[0]]}, which no run can have"
    if not _is_number(row["loss"]):
        return f"{loss} is null"
    if row["loss"] <= 0:
        return f"{loss} is {row['loss']:g}, not above 0"
    if row["loss"] >= 1:
        return f"{loss} is {row['loss']:.3g}: no better than predicting the mean"
    if dead_share > MOST_DEAD:
        shares = " and ".join(f"{name} {row[name]:.0%}" for name in DEATH_MEASURES)
        return f"its latents are dead: {shares}, both above {MOST_DEAD:.0%}"
    return ""


def _is_number(value: Any) -> bool:
    # Compared, not converted: an integer may be too large for a float.
    return isinstance(value, int | float) and -1e300 < value < 1e300


def _copy_of(row: dict[Any, Any], seen: dict[object, str]) -> str:
    """Two folders of one run_id, or two runs equal to the last digit: counted once."""
    result = tuple(row[name] for name in (*_COORDINATES, "loss"))
    identities: Sequence[object] = (row["run_id"], result)
    first = next((seen[identity] for identity in identities if identity in seen), "")
    for identity in identities:
        seen.setdefault(identity, row["folder"])
    return f"copy of the run in {Path(first).name}" if first else ""
