"""How each unit of an evaluation's draw moves a run's numbers, kept beside them.

    RUN/evaluation/draws_METRIC.npz     COLUMN float32 [U], measured_as, units

For U documents, tasks, tokens or vectors: its share of a number's error, in the number's unit.
All runs of a sweep are measured on the same draw, so whoever compares runs adds these up unit by
unit, and what moves all runs alike falls out. `units` says which they are: runs on other text, or
of one token more that is kept, have other ones in the same places. Numbers whose draw is each run's
own have none here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scaling.runs.evaluation_columns import MEASURED_AS
from scaling.storage.atomic import write_bytes

Floats = NDArray[np.float64]
_UNITS = "units"
_UNREADABLE = (
    *(OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile),
    *(TypeError, AttributeError, NotImplementedError, RuntimeError),  # no file of this program's
)


class Draws(NamedTuple):
    """Of one metric of a run."""

    moves: dict[str, Floats]
    """By column, float64 [U]."""
    units: str = ""
    """Equal where two runs have the same units; "" where that was not kept."""


def _path(folder: Path, metric: str) -> Path:
    return folder / "evaluation" / f"draws_{metric}.npz"


def write_draws(
    folder: Path, metric: str, measured_as: str, draws: Mapping[str, Floats], units: str = ""
) -> None:
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
    marks = {MEASURED_AS: np.array(measured_as), _UNITS: np.array(units)}
    np.savez(content, allow_pickle=False, **marks, **columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())


def read_draws(folder: Path, metric: str, measured_as: str) -> Draws:
    """Without a column where there are none, none that can be read, or such as were measured
    otherwise."""
    try:
        with _path(folder, metric).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays[MEASURED_AS]) != measured_as:
                return Draws({})
            units = str(arrays[_UNITS]) if _UNITS in arrays.files else ""
            columns = [name for name in arrays.files if name not in (MEASURED_AS, _UNITS)]
            found = {name: arrays[name].astype(np.float64) for name in columns}
    except _UNREADABLE:
        return Draws({})
    sound = {name: one for name, one in found.items() if one.ndim == 1 and np.isfinite(one).all()}
    return Draws(sound, units)
