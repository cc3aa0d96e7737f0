"""A run as a flat row, whatever it was read from, and rows as one DataFrame.

Keys of a row: those of `LEADING` (text, never null), then the result and cost fields of record.json
under their own names, then whatever an evaluation measured. docs/loading.md has the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pandas as pd

from scaling.runs.fields import COST_FIELDS, RESULT_FIELDS, Field
from scaling.runs.record import Record, Status, type_problems_of

Row = dict[str, Any]

LEADING = ("run_id", "sweep", "status", "source", "folder", "error")
UNREADABLE = "unreadable"
"""Stands where a status would: nothing is known of the run but its name."""
FIELDS: dict[str, Field] = {**RESULT_FIELDS, **COST_FIELDS}
_RESERVED = frozenset((*LEADING, *FIELDS, "loss", "excluded"))


class Origin(Protocol):
    """Where runs come from: one of the kinds that `sources.origins` tells apart."""

    @property
    def name(self) -> str:
        """As the user would give it; the column `source`."""
        ...

    def rows(self) -> list[Row]:
        """A row per run. TableError where there is none."""
        ...

    def histories(self, runs: Collection[str] | None) -> Iterator[tuple[str, list[Row]]]:
        """run_id and logged rows, in the order they were logged; of `runs` only, where given."""
        ...


def as_text(name: str) -> str:
    """`name` as text that can be written: what is not UTF-8 in it, as \\udcff."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def row_of(record: Record, *, folder: str, source: str) -> Row:
    error = f"{record.error.type}: {record.error.message}" if record.error else ""
    leading = (record.run_id, record.sweep, str(record.status), source, folder, error)
    row = {**record.cost, **record.result, **dict(zip(LEADING, leading, strict=True))}
    return {name: as_text(v) if isinstance(v, str) else v for name, v in row.items()}


def unreadable(run_id: str, error: str, *, folder: str, source: str) -> Row:
    """The row of a run of which there is no more than this error."""
    leading = (run_id, "", UNREADABLE, source, folder, as_text(error))
    return dict(zip(LEADING, leading, strict=True))


def type_problem(record: Record) -> str:
    """The first value of another type than the schema gives it; "" where all are right."""
    if not (isinstance(record.result, dict) and isinstance(record.cost, dict)):
        return "result and cost must be objects"
    if not (isinstance(record.run_id, str) and isinstance(record.sweep, str)):
        return "run_id and sweep must be text"
    return next(iter(type_problems_of(record)), "")


def flat_type_problem(row: Row) -> str:
    """`type_problem` of a row that never was a record, such as a line of a table."""
    if row["status"] != Status.done:
        return ""
    result = {name: row[name] for name in RESULT_FIELDS if row.get(name) is not None}
    cost = {name: row[name] for name in COST_FIELDS if row.get(name) is not None}
    return type_problem(Record(row["run_id"], row["sweep"], Status.done, result, cost))


def as_field(name: str, value: Any) -> Any:
    """`value` with the type the schema gives `name`, where only its spelling differs.

    Tables and W&B turn 4096 into 4096.0; a number that is not whole stays as it is.
    """
    field = FIELDS.get(name)
    if field is None or float in field.types or not isinstance(value, float):
        return value
    return int(value) if value.is_integer() else value


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per row; a key that a row lacks is null there. Columns in a fixed order."""
    columns = column_order(rows)
    return pd.DataFrame({name: [row.get(name) for row in rows] for name in columns})


def column_order(rows: Iterable[Row]) -> list[str]:
    """`LEADING`, then fields in the order of the schema, then all others by name."""
    found = {name for row in rows for name in row}
    known = [*LEADING, *(name for name in FIELDS if name in found)]
    return [*known, *sorted(found - {*known})]


def evaluation_columns(values: Mapping[str, Any]) -> tuple[Row, str]:
    """The values of an evaluation that become columns, and what was left out ("": nothing).

    No evaluation may give another meaning to a column of the records.
    """
    taken = sorted(_RESERVED & {*values})
    problem = f"evaluation.json: {', '.join(taken)} left out: a record has it" if taken else ""
    kept = {name: value for name, value in values.items() if name not in _RESERVED}
    return {name: as_text(v) if isinstance(v, str) else v for name, v in kept.items()}, problem
