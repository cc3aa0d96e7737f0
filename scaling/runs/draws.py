"""How each unit of an evaluation's draw moves a run's numbers, kept beside them.

    RUN/evaluation/draws_METRIC.npz     COLUMN float32 [U], measured_as

For U documents, tasks, tokens or vectors: its share of a number's error, in the number's unit.
All runs of a sweep are measured on the same draw, so whoever compares runs adds these up unit by
unit, and what moves all runs alike falls out. Numbers whose draw is each run's own have none here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scaling.runs.evaluation_columns import MEASURED_AS
from scaling.storage.atomic import write_bytes

Floats = NDArray[np.float64]


def _path(folder: Path, metric: str) -> Path:
    return folder / "evaluation" / f"draws_{metric}.npz"


def write_draws(folder: Path, metric: str, measured_as: str, draws: Mapping[str, Floats]) -> None:
    """Of a run's `folder`; replaces what was there, by nothing where there are none.

    Raises:
        UserError: a full disk.
    """
    path = _path(folder, metric)
    if not draws:
        path.unlink(missing_ok=True)
        return
    content = io.BytesIO()
    columns = {column: one.astype(np.float32) for column, one in draws.items()}
    np.savez(content, allow_pickle=False, **{MEASURED_AS: np.array(measured_as)}, **columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())


def read_draws(folder: Path, metric: str, measured_as: str) -> dict[str, Floats]:
    """By column, float64 [U]; empty where there are none, none that can be read, or such as were
    measured otherwise."""
    try:
        with _path(folder, metric).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays[MEASURED_AS]) != measured_as:
                return {}
            columns = [name for name in arrays.files if name != MEASURED_AS]
            found = {name: arrays[name].astype(np.float64) for name in columns}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return {}
    return {name: one for name, one in found.items() if one.ndim == 1 and np.isfinite(one).all()}
