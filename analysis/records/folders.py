"""Run folders as rows: of one run, of a sweep, or of a folder that holds sweeps.

A record that cannot be read does not stop the others: it is a row with status "unreadable".
evaluation.json, where a run has one, adds its numbers as columns, and how each was measured.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import TableError
from analysis.records.migrate import to_current
from analysis.records.rows import (
    Row,
    as_text,
    evaluation_columns,
    row_of,
    type_problem,
    unreadable,
)
from scaling.runs.evaluation_columns import evaluation_values
from scaling.runs.record import Record
from scaling.runs.store import RunFolder


@dataclass(frozen=True)
class Folders:
    """Runs in a folder. An `Origin`."""

    path: Path

    @property
    def name(self) -> str:
        return as_text(str(self.path))

    def rows(self) -> list[Row]:
        return [read_run(folder, self.name) for folder in self._found()]

    def histories(self, runs: Collection[str] | None) -> Iterator[tuple[str, list[Row]]]:
        for folder in self._found():
            name = as_text(folder.name)
            if runs is None or name in runs:
                yield name, _logged(RunFolder(folder))

    def _found(self) -> list[Path]:
        folders = find_runs(self.path)
        if not folders:
            _refuse_checkpoints(self.path)
            raise TableError(
                f"{self.path} holds no run (no */record.json); give the folder of a sweep, "
                "RUNS_DIR/SWEEP, after at least one run was started."
            )
        return folders


def find_runs(path: Path) -> list[Path]:
    """Run folders by name: `path` itself, else those in it, else those in the folders in it.

    A folder among runs that may not be entered is one of them, so that it is told and not missed.

    Raises:
        TableError: no run can be seen because a folder may not be entered or listed.
    """
    if _is_run(path):
        return [path]
    inside = _folders_in(path)
    runs = _runs_among(inside)
    if runs:
        return runs
    closed = [folder for folder in inside if _is_run(folder) is None]
    if closed:
        raise _closed(closed[0], "Permission denied")
    return [run for sweep in inside for run in _runs_among(_folders_in(sweep))]


def _runs_among(folders: Sequence[Path]) -> list[Path]:
    """Those that are runs, or may be; none where none is known to be."""
    runs = {folder: _is_run(folder) for folder in folders}
    known = any(runs.values())
    return [folder for folder, is_run in runs.items() if known and is_run is not False]


def read_run(folder: Path, source: str) -> Row:
    """The row of one run folder, with what its evaluation.json adds."""
    row = _read_record(folder, source)
    added, problem = _evaluation(folder)
    if problem:
        row["evaluation_error"] = problem
    return {**added, **row}


def _read_record(folder: Path, source: str) -> Row:
    run_id, where = as_text(folder.name), as_text(str(folder))
    try:
        record = Record.from_json(to_current(_object(_bytes_of(folder / "record.json"))))
        problem = type_problem(record)
    except FileNotFoundError:  # a launch that was killed right after the plan
        return row_of(Record(run_id, as_text(folder.parent.name)), folder=where, source=source)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        if not problem:
            return row_of(record, folder=where, source=source)
    return unreadable(run_id, f"record.json: {problem}", folder=where, source=source)


def _logged(run: RunFolder) -> list[Row]:
    """The rows of metrics.jsonl; none where the run has not logged yet."""
    path = run.metrics_path
    try:
        if os.path.lexists(path) and not path.is_file():
            raise OSError(errno.EINVAL, "no regular file")
        return run.metrics()
    except OSError as error:
        raise TableError(
            f"{as_text(str(path))} cannot be read ({error.strerror}); make it readable, move it "
            "away, or choose other runs by runs=[...]."
        ) from error


def _evaluation(folder: Path) -> tuple[Row, str]:
    """The columns of evaluation.json, and what is wrong with the file ("": nothing)."""
    try:
        values = evaluation_values(_bytes_of(folder / "evaluation.json"))
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"evaluation.json: {type(error).__name__}: {error}"
    return evaluation_columns(values)


def _bytes_of(path: Path) -> bytes:
    # os.open and not pathlib: ten thousand of these are read in a row.
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def _object(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _is_run(path: Path) -> bool | None:
    """Whether it has a record or a plan, readable or not; None where it may not be entered."""
    for name in ("record.json", "plan.json"):
        try:
            os.lstat(f"{path}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
        return True
    return False


def _folders_in(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError as error:
        raise _closed(path, error.strerror) from error


def _closed(path: Path, reason: str | None) -> TableError:
    return TableError(
        f"{as_text(str(path))} cannot be read ({reason}), so the runs in it are unknown; make it "
        "readable, or give a folder without it."
    )


def _refuse_checkpoints(path: Path) -> None:
    """TableError where `path` is the folder of a checkpoint, or of several."""
    steps = [path] if path.name.startswith("step_") else sorted(path.glob("step_*"))
    if not any((step / "manifest.json").exists() for step in steps):
        return
    run = steps[0].resolve().parent.parent
    raise TableError(
        f"{path} holds checkpoints of one run ({run.name}), and checkpoints are not independent "
        f"points of a law. Give the run's folder, {run}, or the sweep's; load_curves reads how "
        "the loss of a run fell."
    )
