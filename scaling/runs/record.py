"""record.json: one row per run, the only thing analysis reads. docs/records.md shows an example.

Its fields are in `scaling.runs.fields`; `problems_of` compares a record with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum, auto
from traceback import format_exception
from typing import Any, Self

from scaling.errors import UserError
from scaling.runs.fields import COST_FIELDS, RESULT_FIELDS, Field

SCHEMA_VERSION = 1


class Status(StrEnum):
    planned = auto()
    """Never started."""
    running = auto()
    """Somebody holds its lease; with no live holder, its process died and the next call resumes."""
    done = auto()
    failed = auto()
    """Raised, or its process died more often than `launcher.retries` allows. The next call
    tries again, from the last checkpoint."""
    diverged = auto()
    """The loss left the finite numbers: a result, not a fault. Kept as it is."""
    preempted = auto()
    """Told to stop; it wrote a checkpoint. The next call resumes."""


FINAL = frozenset({Status.done, Status.diverged})
"""Never run again."""


@dataclass(frozen=True)
class RunError:
    type: str
    """Name of the exception, or WorkerDied."""
    message: str
    traceback: str | None = None
    """Of the first failing rank, or the last lines the dead process wrote."""
    rank: int | None = None

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Bad input says all in its message; anything else comes with its traceback."""
        trace = None if isinstance(error, UserError) else "".join(format_exception(error))
        return cls(type(error).__name__, str(error), trace)


@dataclass(frozen=True)
class RunOutcome:
    """What one attempt at a run came to: `done`, `diverged`, `preempted` or, with an error,
    `failed`."""

    status: Status
    result: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    error: RunError | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values only: a number that is not finite becomes null."""
        return _finite({**asdict(self), "status": str(self.status)})

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        error = RunError(**row["error"]) if row["error"] else None
        return cls(**{**row, "status": Status(row["status"]), "error": error})


@dataclass(frozen=True)
class Record:
    run_id: str
    sweep: str
    status: Status = Status.planned
    result: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    error: RunError | None = None
    warnings: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """JSON values only: a number that is not finite becomes null."""
        row = {"schema_version": self.schema_version, **asdict(self), "status": str(self.status)}
        return _finite(row)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Raises `KeyError` or `ValueError` for what is no record of this schema version."""
        if row["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {row['schema_version']} is not {SCHEMA_VERSION}")
        error = RunError(**row["error"]) if row["error"] else None
        return cls(**{**row, "status": Status(row["status"]), "error": error})

    def with_outcome(self, outcome: RunOutcome) -> Record:
        """This run after an attempt.

        An attempt that went on from an inexact one is no more exact than that.
        """
        cost = {**self.cost, **outcome.cost}
        if cost.get("resumed_at_step") and not self.cost.get("bit_exact", True):
            cost["bit_exact"] = False
        return replace(
            self,
            status=outcome.status,
            result=outcome.result,
            cost=cost,
            error=outcome.error,
            warnings=outcome.warnings,
        )


def problems_of(record: Record) -> list[str]:
    """Where a `done` record departs from the schema, one line each; empty for other statuses."""
    if record.status is not Status.done:
        return []
    return [
        *_section_problems("result", record.result, RESULT_FIELDS),
        *_section_problems("cost", record.cost, COST_FIELDS),
    ]


def type_problems_of(record: Record) -> list[str]:
    """Those of `problems_of` that are values of a wrong type."""
    if record.status is not Status.done:
        return []
    return [
        *_mistyped("result", record.result, RESULT_FIELDS),
        *_mistyped("cost", record.cost, COST_FIELDS),
    ]


def _section_problems(name: str, values: dict[str, Any], schema: dict[str, Field]) -> list[str]:
    missing = [
        f"{name}.{key} is missing"
        for key, wanted in schema.items()
        if key not in values and not wanted.optional
    ]
    unknown = [f"{name}.{key} is not in the schema" for key in values if key not in schema]
    return missing + unknown + _mistyped(name, values, schema)


def _mistyped(name: str, values: dict[str, Any], schema: dict[str, Field]) -> list[str]:
    return [
        f"{name}.{key} = {values[key]!r} has the wrong type"
        for key, wanted in schema.items()
        if key in values and not _has_type(values[key], wanted.types)
    ]


def _has_type(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
