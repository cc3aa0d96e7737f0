"""evaluation.json: the numbers of all metrics of a run at the top, and how each came about.

    {"downstream_kl": 0.12, ..., "metrics": {"downstream": {"identity": ...,
     "measured_as": ..., "version": 1, "settings": {...}, "seconds": 3.2,
     "standard_errors": {"downstream_kl": {"value": 0.01, "over": "documents"}},
     "baselines": {}, "notes": {...}}}}

A metric is done where its identity (a hash of name, version, settings, material and weights) is
that of what is wanted; only then is it not measured again. `measured_as` leaves the run out: equal
where numbers of two runs compare. The file is replaced whole after each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from scaling.errors import UserError
from scaling.evaluation.metric import Measured
from scaling.runs.draws import write_draws
from scaling.runs.evaluation_columns import BASELINES, MEASURED_AS, STANDARD_ERRORS
from scaling.runs.store import RunFolder
from scaling.storage.atomic import read_json, write_json
from scaling.storage.hashing import canonical_json, sha256_hex

ID_DIGITS = 12
_METRICS = "metrics"


def identity(name: str, version: int, **what: Any) -> str:
    """Short hash of all that determines a metric's numbers. `what` is JSON."""
    content = {"name": name, "version": version, **what}
    return sha256_hex(canonical_json(content))[:ID_DIGITS]


class Results:
    """The evaluation.json of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.evaluation_path
        self._content = self._read()

    @property
    def numbers(self) -> dict[str, float | None]:
        return {name: value for name, value in self._content.items() if name != _METRICS}

    def of_weights(self, weights: str) -> dict[str, list[str]]:
        """The metrics measured on these weights, "raw" or "averaged", with their columns."""
        entries = self._metrics().items()
        return {name: one["columns"] for name, one in entries if one.get("weights") == weights}

    def has(self, metric: str, wanted: str) -> bool:
        """Whether that metric's numbers are there, all of them, and of the identity wanted."""
        entry = self._metrics().get(metric, {})
        return entry.get("identity") == wanted and self.numbers.keys() >= set(_columns(entry))

    def put(self, metric: str, identity: str, measured: Measured, how: Mapping[str, Any]) -> None:
        """Write a metric's numbers in the place of those it had, at once and whole.

        Raises:
            UserError: a full disk.
            ValueError: a number that is none (NaN, infinity), or a name that another metric has.
        """
        others = [entry for name, entry in self._metrics().items() if name != metric]
        owned = {_METRICS, *(column for entry in others for column in _columns(entry))}
        numbers = {name: _plain(name, value) for name, value in measured.numbers.items()}
        if taken := sorted(owned & numbers.keys()):
            raise ValueError(f"{metric} gives {', '.join(taken)}, which another metric gives")
        before = _columns(self._metrics().get(metric, {}))
        kept = {name: value for name, value in self.numbers.items() if name not in before}
        entry = {
            "identity": identity,
            "columns": list(numbers),
            **how,
            **_errors_and_baselines(measured),
            "notes": dict(measured.notes),
        }
        content = {**kept, **numbers, _METRICS: {**self._metrics(), metric: entry}}
        measured_as = str(how.get(MEASURED_AS, ""))
        write_draws(self._path.parent, metric, measured_as, measured.draws, measured.units)
        write_json(self._path, content)
        self._content = content

    def _metrics(self) -> dict[str, Any]:
        return self._content.get(_METRICS, {})

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        content: Any = read_json(self._path) if self._path.is_file() else None
        if not _is_evaluation(content) or not _is_plain(content):
            raise UserError(
                f"{self._path} is not an evaluation: restore it, or remove it to have the run "
                "evaluated again."
            )
        return content


def _is_evaluation(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get(_METRICS, {}), dict):
        return False
    metrics, numbers = content.get(_METRICS, {}), dict(content)
    numbers.pop(_METRICS, None)
    return all(map(_is_entry, metrics.values())) and all(map(_is_number, numbers.values()))


def _is_plain(content: Any) -> bool:
    """Without NaN and infinity, which some JSON has and which could not be written again."""
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        return False
    return True


def _is_entry(entry: Any) -> bool:
    columns = entry.get("columns") if isinstance(entry, dict) else None
    return isinstance(columns, list) and all(isinstance(name, str) for name in columns)


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _errors_and_baselines(measured: Measured) -> dict[str, Any]:
    baselines = {
        column: {name: one._asdict() for name, one in of_column.items()}
        for column, of_column in measured.baselines.items()
    }
    errors = {column: error._asdict() for column, error in measured.standard_errors.items()}
    return {STANDARD_ERRORS: errors, BASELINES: baselines}


def _columns(entry: Mapping[str, Any]) -> list[str]:
    return entry.get("columns", [])


def _plain(name: str, value: float | None) -> float | None:
    """Of whatever library's type, as JSON has it."""
    number = None if value is None else float(value)
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{name} is {number}")
    return number
