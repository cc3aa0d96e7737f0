"""A records table: many runs as one small CSV file that reads back as the same rows.

Text is written as it is, null as nothing, every other value as JSON. So 250000 stays whole, true
stays true, a run_id of digits stays text, and lists and objects survive.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import TableError
from analysis.files import replace_text
from analysis.records.checkpoints import refuse_one_run
from analysis.records.columns import LOSSES
from analysis.records.csv_file import read_csv
from analysis.records.rows import (
    FIELDS,
    LEADING,
    Row,
    as_field,
    as_text,
    column_order,
    flat_type_problem,
    unreadable,
)
from scaling.runs.evaluation_columns import MEASURED_AS
from scaling.runs.record import FINAL, Status

_ONE_RESULT = ("status", "tokens", *LOSSES)
_TEXT = {*LEADING, *(name for name, field in FIELDS.items() if str in field.types)}


@dataclass(frozen=True)
class Collected:
    """A records table. An `Origin`."""

    path: Path

    @property
    def name(self) -> str:
        return as_text(str(self.path))

    def rows(self) -> list[Row]:
        return read_rows(self.path)

    def histories(self, runs: Collection[str] | None) -> Iterator[tuple[str, list[Row]]]:
        raise TableError(
            f"{self.path} is a table of records, which has no curves; give the sweep's folder or "
            "W&B project."
        )


def read_rows(path: Path) -> list[Row]:
    """The rows of a records table; a line with a value of the wrong type is unreadable.

    Raises:
        TableError: not a CSV table, no run_id, or no line.
    """
    text = _cells(path)
    if "run_id" not in text or text.empty:
        found = ", ".join(map(str, text.columns)) or "none"
        raise TableError(
            f"{path} is no table of records: it needs a column run_id and at least one line; its "
            f"columns are: {found}. `python -m analysis.collect` makes one, and "
            "`python -m analysis.fit --table` takes tables of other origin."
        )
    columns = {str(name): _values(str(name), text[name].tolist()) for name in text}
    lines = zip(*columns.values(), strict=True)
    given = [dict(zip(columns, values, strict=True)) for values in lines]
    return [_checked({**_leading(path), **row}) for row in given]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows or nothing, sorted by run_id; values that a row lacks are null.

    Raises:
        TableError: the folder is missing or not writable.
    """
    columns = column_order(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    ordered = sorted(rows, key=lambda row: row["run_id"])
    writer.writerows([_cell(name, row.get(name)) for name in columns] for row in ordered)
    replace_text(path, text.getvalue())


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """One row per run: a new one replaces an old one, unless only the old one has a result.

    Sweeps may share a run, and one of them may not have got to it yet. Where both have one result,
    the old row fills what the new one lacks: a copy in W&B knows less than the run's folder.

    Raises:
        TableError: a run_id is done at two token counts.
    """
    rows: dict[str, Row] = {}
    for row in (*old, *new):
        there = rows.get(row["run_id"])
        if there is None or row["status"] in FINAL or there["status"] not in FINAL:
            _refuse_checkpoints(row, there)
            rows[row["run_id"]] = _filled(row, there)
    return list(rows.values())


def _filled(row: Row, there: Row | None) -> Row:
    """`row`, with what only `there` has, where the two are of one result."""
    if there is None or any(row.get(name) != there.get(name) for name in _ONE_RESULT):
        return row
    return {**there, **{name: value for name, value in row.items() if value is not None}}


def _refuse_checkpoints(row: Row, there: Row | None) -> None:
    if there is None or not row["status"] == there["status"] == Status.done:
        return
    places = f" (in {there['source']} and {row['source']})"
    refuse_one_run(row["run_id"], [r["tokens"] for r in (there, row) if r.get("tokens")], places)


def _cells(path: Path) -> pd.DataFrame:
    remedy = "make it anew with `python -m analysis.collect SOURCE --csv FILE`."
    text = {"dtype": str, "keep_default_na": False, "encoding": "utf-8"}
    return read_csv(path, name=str(path), remedy=remedy, **text)


def _leading(path: Path) -> Row:
    """What a table made by hand may leave out."""
    return {**dict.fromkeys(LEADING, ""), "status": str(Status.done), "source": as_text(str(path))}


def _values(name: str, cells: list[str]) -> list[Any]:
    if name in LEADING:
        return cells
    # A hash of digits alone, or of digits around an e, would read as a number.
    if name in _TEXT or name.endswith(f"_{MEASURED_AS}"):
        return [cell or None for cell in cells]
    values = [_value(name, cell) for cell in cells]
    # Of a column that the schema does not know, text in one line makes text of all.
    if name not in FIELDS and any(isinstance(value, str) for value in values):
        return [cell or None for cell in cells]
    return values


def _value(name: str, cell: str) -> Any:
    if not cell:
        return None
    try:
        return as_field(name, json.loads(cell))
    except (ValueError, RecursionError):  # no JSON, or brackets without end
        # As other programs spell what JSON calls true and false.
        return {"True": True, "False": False}.get(cell, cell)


def _checked(row: Row) -> Row:
    problem = flat_type_problem(row)
    if not problem:
        return row
    return unreadable(row["run_id"], problem, folder=row["folder"], source=row["source"])


def _cell(name: str, value: Any) -> str:
    if value is None or (name in _TEXT and isinstance(value, str)):
        return value or ""
    return value if isinstance(value, str) else json.dumps(value)
