"""What an evaluation.json adds to a run's row, here and in W&B's summary.

downstream_kl                   numbers at the top of the file
downstream_kl_standard_error    of the draw of documents, vectors, latents, tokens or tasks
probe_loss_of_channels          a baseline of probe_loss, on the same draw
downstream_measured_as          of a metric: equal where numbers of two runs compare
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

EVALUATION_IN_SUMMARY = "evaluation/"
"""Before the names of the columns in W&B's summary, which has logged metrics too."""
OWN = ("latents",)
"""What standard errors are over that each run draws for itself; all else is the same for all."""
MEASURED_AS = "measured_as"
STANDARD_ERRORS = "standard_errors"
BASELINES = "baselines"
"""Keys of a metric in evaluation.json."""
_LARGEST = 1e300
"""No error and no baseline is beyond it, nor NaN."""


def standard_error_column(column: str) -> str:
    return f"{column}_standard_error"


def baseline_column(column: str, baseline: str) -> str:
    return f"{column}_of_{baseline}"


def baselines_of(column: str, columns: Iterable[str]) -> list[str]:
    """Names of the baselines of `column` among columns."""
    prefix = baseline_column(column, "")
    return [name.removeprefix(prefix) for name in columns if name.startswith(prefix)]


def evaluation_values(data: bytes) -> dict[str, float | str]:
    """The columns of an evaluation.json. What has another type is left out.

    Raises:
        ValueError: it is no JSON object.
    """
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    metrics = values.get("metrics")
    entries = metrics if isinstance(metrics, dict) else {}
    found = {
        column: value
        for entry in entries.values()
        if isinstance(entry, dict)
        for column, value in _beside_numbers(entry)
    }
    numbers = {name: value for name, value in values.items() if _is_number(value)}
    columns = {**found, **numbers, **_measured_as(entries)}
    return {_writable(name): value for name, value in columns.items()}


def standard_errors_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """By column, from what evaluation.json has of a metric."""
    values = _values(entry.get(STANDARD_ERRORS))
    return {column: value for column, value in values.items() if value >= 0}


def baselines_in(entry: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By column and name, from what evaluation.json has of a metric."""
    return {column: _values(named) for column, named in _items(entry.get(BASELINES))}


def _beside_numbers(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for column, error in standard_errors_of(entry).items():
        yield standard_error_column(column), error
    for column, named in baselines_in(entry).items():
        for name, value in named.items():
            yield baseline_column(column, name), value


def _measured_as(entries: Mapping[str, Any]) -> dict[str, str]:
    found = {name: one.get(MEASURED_AS) for name, one in entries.items() if isinstance(one, dict)}
    return {
        f"{name}_{MEASURED_AS}": _writable(how)
        for name, how in found.items()
        if isinstance(how, str)
    }


def _values(named: Any) -> dict[str, float]:
    """The numbers called value in objects by name."""
    found: dict[str, Any] = {
        name: one.get("value") for name, one in _items(named) if isinstance(one, dict)
    }
    # Compared, not converted: an integer may be too large for a float.
    return {name: one for name, one in found.items() if _is_number(one) and abs(one) < _LARGEST}


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _writable(text: str) -> str:
    """With half characters, which JSON can hold and no table or server, as \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()
