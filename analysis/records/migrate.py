"""Brings a record.json of an earlier schema version to the one this code reads.

One function per step, from a version to the next; `STEPS` names each by the version it starts from.
Whoever raises `scaling.runs.record.SCHEMA_VERSION` adds the step here, or a test fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from scaling.runs.record import SCHEMA_VERSION

Step = Callable[[dict[str, Any]], dict[str, Any]]

STEPS: Mapping[int, Step] = {}
"""Version 1 is the first: nothing precedes it."""

_COST_BEFORE_IT_WAS_RECORDED = {"mesh": [1, 1]}
"""Fields that joined version 1 later, with what they were before they could be anything else."""


def to_current(
    record: dict[str, Any], *, steps: Mapping[int, Step] = STEPS, current: int = SCHEMA_VERSION
) -> dict[str, Any]:
    """The record in schema version `current`; the argument is left as it is.

    Raises:
        ValueError: the version is newer, not a version, or there is no step from it.
    """
    version = _version(record, current)
    while version < current:
        if version not in steps:
            raise ValueError(f"schema_version {version} has no migration to {version + 1}")
        version, record = version + 1, {**steps[version](record), "schema_version": version + 1}
    return _with_later_fields(record)


def _version(record: dict[str, Any], current: int) -> int:
    version = record.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"schema_version is {version!r}; a record has a whole number from 1")
    if version > current:
        raise ValueError(
            f"schema_version {version} is newer than {current}, the newest that this version of "
            "sae-scaling reads: update it"
        )
    return version


def _with_later_fields(record: dict[str, Any]) -> dict[str, Any]:
    cost = record.get("cost")
    if not isinstance(cost, dict) or not cost:
        return record
    return {**record, "cost": {**_COST_BEFORE_IT_WAS_RECORDED, **cost}}
