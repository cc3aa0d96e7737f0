"""Where the numbers of a run go, row by row. The file is the truth; W&B is a copy of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from scaling.storage.atomic import reports_full_disk, write_bytes


class Logger(Protocol):
    def log(self, row: Mapping[str, Any]) -> None:
        """Keep one row; `tokens` and `step` are always in it, and `step` never falls."""
        ...

    def close(self) -> None: ...


class JsonlLogger:
    """Appends rows to metrics.jsonl, each flushed to the operating system at once.

    `guard` is called before each row (a lease's `check`): what it raises keeps a run that was
    taken over from writing into its successor's file.
    """

    def __init__(self, path: Path, *, guard: Callable[[], None] | None = None) -> None:
        self._path = path
        self._guard = guard
        self._file = path.open("ab", buffering=0)

    def log(self, row: Mapping[str, Any]) -> None:
        """Raises `UserError` when the disk is full. NaN and infinity are written as null."""
        if self._guard is not None:
            self._guard()
        data = _line(row).encode()
        with reports_full_disk(self._path):
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        """Put the rows on the disk, so that they are no older than the record beside them."""
        if self._file.closed:
            return
        with reports_full_disk(self._path):
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The sound rows of metrics.jsonl, in order.

    A line cut short by a kill, or damaged since, is left out: rows are for looking at and carry
    no result.
    """
    if not path.is_file():
        return []
    rows = (_row(line) for line in path.read_bytes().split(b"\n"))
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # of JSON, of text encoding, of brackets without end
        return None
    return row if isinstance(row, dict) and _is_step(row.get("step")) else None


def _is_step(value: Any) -> bool:
    """Whether it counts steps: whole, not below 0, and within 64 bits. True is no 1 here."""
    return type(value) is int and 0 <= value < 2**62


def keep_rows_up_to(path: Path, step: int) -> None:
    """Forget rows after `step`: a run that resumes at a checkpoint writes them again."""
    if path.exists():
        kept = [_line(row) for row in read_rows(path) if row["step"] <= step]
        write_bytes(path, "".join(kept).encode())


def _line(row: Mapping[str, Any]) -> str:
    numbers = {key: _null_unless_finite(value) for key, value in row.items()}
    return json.dumps(numbers, allow_nan=False) + "\n"


def _null_unless_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
