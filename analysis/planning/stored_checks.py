"""Whether the JSON of a fit says what predictions need, before any of it is computed with.

A file may be edited, cut short, or written by another program; a number that is none would give
predictions that are none. Each refusal names the key. `null` stays what it is in these files: a
number that does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from analysis.errors import TableError
from analysis.laws.law import Law

REMAKE = "make the file again with python -m analysis.fit or python -m analysis.report"


def check_fit(fit: Mapping[str, Any], law: type[Law]) -> None:
    """TableError naming the first key whose value no fit has; KeyError for a key that is missing.

    P is the number of the law's parameters.
    """
    _check_whole("n_used", fit["n_used"])
    for name in law.parameter_names:
        _check_parameter(f"params.{name}", _mapping("params", fit["params"])[name])
    for name, size in _mapping("reference", fit["reference"]).items():
        _check(_is_number(size) and size > 0, f"reference.{name}", size, "a number above 0")
    order = fit["covariance_order"]
    known = isinstance(order, list) and all(isinstance(name, str) for name in order)
    known = known and sorted(order) == sorted(law.parameter_names)
    _check(known, "covariance_order", order, f"the names {', '.join(law.parameter_names)}")
    _check_doubt(fit, "", len(order))
    _check_covariance("covariance", fit["covariance"], len(order))
    if fit.get("clustered") is not None:
        clustered = _mapping("clustered", fit["clustered"])
        _check(
            isinstance(clustered.get("by", ""), str), "clustered.by", clustered.get("by"), "text"
        )
        _check_doubt(clustered, "clustered.", len(order))
    for axis, ends in _mapping("ranges", fit.get("ranges", {})).items():
        _check(_is_range(ends), f"ranges.{axis}", ends, "[LOW, HIGH] above 0")
    _mapping("warning_messages", fit.get("warning_messages", {}))


def one_whole_number(key: str, values: Any) -> int | None:
    """The number of a list of one; None for another count of them, or where there is no list.

    The files list what the runs have: of several values none is that of all runs. TableError for
    anything but a list of whole numbers above 0.
    """
    if values is None:
        return None
    _check(isinstance(values, list), key, values, "a list of whole numbers")
    for value in values:
        _check_whole(key, value)
    return int(values[0]) if len(values) == 1 else None


def _check_doubt(part: Mapping[str, Any], inside: str, n_parameters: int) -> None:
    """What a fit and the part of it that clusters made have in common; each may lack any."""
    if "degrees_of_freedom" in part:
        _check_whole(f"{inside}degrees_of_freedom", part["degrees_of_freedom"])
    for key in ("variance", "half_sum_of_squares"):
        value = part.get(key, 0)
        _check(_is_number(value) and value >= 0, f"{inside}{key}", value, "a number from 0 on")
    _check_covariance(f"{inside}covariance", part.get("covariance"), n_parameters)


def _check_covariance(key: str, rows: Any, n_parameters: int) -> None:
    if rows is None:
        return
    size = f"{n_parameters} lists of {n_parameters} numbers"
    lists = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    square = lists and [len(row) for row in rows] == [n_parameters] * n_parameters
    _check(square, key, rows, size)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            _check(value is None or _is_number(value), f"{key}[{i}][{j}]", value, "a number")
        variance = row[i]
        _check(variance is None or variance >= 0, f"{key}[{i}][{i}]", variance, "a variance")


def _check_parameter(key: str, value: Any) -> None:
    _check(value is None or _is_number(value), key, value, "a finite number")


def _check_whole(key: str, value: Any) -> None:
    whole = _is_number(value) and value > 0 and value == int(value)
    _check(whole, key, value, "a whole number above 0")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # digits without end are whole numbers in JSON
        return False


def _is_range(ends: Any) -> bool:
    if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))):
        return False
    return 0 < ends[0] <= ends[1]


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    _check(isinstance(value, dict), key, value, "an object")
    return value


def _check(holds: bool, key: str, value: Any, wanted: str) -> None:
    if not holds:
        raise TableError(f"{key} is {_shown(value)} and not {wanted}; {REMAKE}.")


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a number of too many digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
