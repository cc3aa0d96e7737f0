"""Where the runs of a sweep come from and what they cost, from their records' cost fields."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import scipy

from analysis.records.columns import budgets, numbers
from analysis.records.mixtures import RECIPE

_COMMIT_DIGITS = 12
_RECIPE = ("batch_tokens", *RECIPE)


def provenance(frame: pd.DataFrame) -> dict[str, Any]:
    """Code, data and machines of the runs in use; a list has every value that occurs."""
    used = frame.loc[frame["excluded"] == ""]
    versions = {
        name: _distinct(v.get(name) for v in _present(used, "versions") if isinstance(v, dict))
        for name in sorted({key for v in _present(used, "versions") for key in v})
    }
    named = ("subject_model", "layer", "normalization", "activations_id", "eval_hash")
    return {
        **{name: _distinct(_present(used, name)) for name in (*named, "numerics_version")},
        "d_model": _distinct(_present(used, "d_model")),
        "recipe": {name: _distinct(_present(used, name)) for name in _RECIPE},
        "data_tokens": _data_tokens(used),
        "commits": _distinct(str(c)[:_COMMIT_DIGITS] for c in _present(used, "commit")),
        "uncommitted_changes": any(_present(used, "commit_dirty")),
        "hosts": _distinct(_present(used, "host")),
        "cpus": _distinct(_present(used, "cpu")),
        "devices": _distinct(_present(used, "device")),
        "versions": versions,
        "analysis_versions": _analysis_versions(),
    }


def subject(frame: pd.DataFrame) -> str:
    """Of which activations the runs in use are, in words."""
    facts = provenance(frame)
    models = ", ".join(map(str, facts["subject_model"])) or "planted data"
    layers = ", ".join(map(str, facts["layer"]))
    return f"Activations of {models}" + (f", after block {layers}" if layers else "")


def costs(frame: pd.DataFrame) -> dict[str, float | int | None]:
    """Seconds, tokens and FLOPs of the runs in use; None where no record says it.

    train_s is the training loop of each run's last attempt, evaluations and checkpoints in it
    included; wall_s adds opening, final measurement and earlier attempts. Both are summed over
    runs. elapsed_s is from the first start to the last end, pauses between calls included.
    peak_memory_bytes is the largest of any run's process: an upper bound of what a run needs.
    """
    used = frame.loc[frame["excluded"] == ""]
    return {
        "runs": len(used),
        "tokens": _total(used, "tokens"),
        "flops_dense": _total(used, "flops_dense"),
        "flops_sparse": _total(used, "flops_sparse"),
        "train_s": _total(used, "train_s"),
        "wall_s": _total(used, "wall_s"),
        "elapsed_s": _elapsed_s(used),
        "slowest_run_s": max(_present(used, "wall_s"), default=None),
        "peak_memory_bytes": max(_present(used, "peak_memory_bytes"), default=None),
    }


def trained_tokens(frame: pd.DataFrame, budget: float) -> list[int]:
    """What runs of a budget trained in whole batches, each value once, ascending."""
    used = frame.loc[frame["excluded"] == ""]
    trained = numbers(used, "tokens")[budgets(used) == budget]
    return np.unique(trained).astype(int).tolist()


def _data_tokens(used: pd.DataFrame) -> list[int]:
    """Different training vectors that runs drew from; none where data are made without end."""
    drawn = numbers(used, "tokens") / numbers(used, "epochs")
    return np.unique(drawn[np.isfinite(drawn)].round()).astype(int).tolist()


def _present(frame: pd.DataFrame, column: str) -> list[Any]:
    if column not in frame:
        return []
    # A number column with gaps turns to float in pandas; whole numbers are shown as such.
    values = [v for v in frame[column] if not (v is None or (isinstance(v, float) and np.isnan(v)))]
    return [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]


def _distinct(values: Any) -> list[Any]:
    unique: dict[Hashable, None] = dict.fromkeys(v for v in values if v is not None)
    return list(unique)


def _total(frame: pd.DataFrame, column: str) -> float | None:
    values = _present(frame, column)
    return sum(values) if values else None


def _elapsed_s(frame: pd.DataFrame) -> float | None:
    starts, ends = (_present(frame, name) for name in ("started_at", "finished_at"))
    if not (starts and ends):
        return None
    try:
        first, last = min(map(_time, starts)), max(map(_time, ends))
    except (TypeError, ValueError):  # written by hand: no reason to have no report
        return None
    return (last - first).total_seconds()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _analysis_versions() -> dict[str, str]:
    modules = (np, scipy, pd, matplotlib)
    return {module.__name__: module.__version__ for module in modules}
