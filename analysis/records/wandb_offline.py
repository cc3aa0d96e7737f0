"""Offline runs of W&B: the .wandb files that `WANDB_MODE=offline` leaves, read without a server.

A run that was resumed has several; they are read in the order they were begun.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.errors import TableError
from analysis.records.rows import Row, as_text, unreadable
from analysis.records.wandb_file import entries
from analysis.records.wandb_reader import parse_entry
from analysis.records.wandb_rows import (
    FINISHED,
    Copied,
    history_row,
    refuse_foreign,
    row_of_copy,
)


@dataclass
class OfflineCopy(Copied):
    """A run as its files have it, oldest first."""

    files: list[Path] = field(default_factory=list)
    history: list[Row] = field(default_factory=list)
    begun: bool = False  # a file says which run it is of: the first thing that W&B writes
    damage: str = ""
    """What could not be read; all before it was."""


@dataclass(frozen=True)
class OfflineFolder:
    """offline-run-* folders, or one of them. An `Origin`."""

    path: Path

    @property
    def name(self) -> str:
        return as_text(str(self.path))

    def rows(self) -> list[Row]:
        copies = self._copies(None, history=False)
        rows = [self._row(copy) for copy in copies]
        keys = {key for copy in copies for key in copy.summary if not key.startswith("_")}
        refuse_foreign(rows, self.name, sorted(keys))
        return rows

    def histories(self, runs: Collection[str] | None) -> Iterator[tuple[str, list[Row]]]:
        for copy in self._copies(runs, history=True):
            yield copy.run_id, copy.history

    def _row(self, copy: OfflineCopy) -> Row:
        folder = as_text(str(copy.files[-1].parent))
        if copy.damage or not copy.begun:
            problem = copy.damage or _nothing_in(copy.files[-1])
            return unreadable(copy.run_id, problem, folder=folder, source=self.name)
        return row_of_copy(copy, source=self.name, folder=folder)

    def _copies(self, runs: Collection[str] | None, *, history: bool) -> list[OfflineCopy]:
        copies: dict[str, OfflineCopy] = {}
        for file in wandb_files(self.path):
            run_id = as_text(file.stem.removeprefix("run-"))
            if runs is None or run_id in runs:
                _read_into(copies.setdefault(run_id, OfflineCopy(run_id)), file, history=history)
        return list(copies.values())


def _nothing_in(file: Path) -> str:
    what = "is cut short before it says of which run it is" if file.stat().st_size else "is empty"
    return f"{file.name} {what}: W&B was ended before it had written anything"


def wandb_files(path: Path) -> list[Path]:
    """The .wandb files in `path` or in the run folders in it, in the order they were begun."""
    return sorted(path.glob("*.wandb")) or sorted(path.glob("*run-*/*.wandb"))


def is_offline_folder(path: Path) -> bool:
    """Whether `path` holds files of offline runs, itself or in the folders that W&B makes."""
    return any(path.glob("*.wandb")) or any(path.glob("*run-*/*.wandb"))


def _read_into(copy: OfflineCopy, file: Path, *, history: bool) -> None:
    copy.files.append(file)
    copy.state = "running"  # until the file says how it ended
    summary: dict[str, str] = {}
    try:
        for entry in entries(file.read_bytes()):
            record = parse_entry(entry)
            if record.HasField("summary"):  # one per logged row: only the last texts are parsed
                summary |= _texts(record.summary.update)
            elif history or not record.HasField("history"):
                _take(copy, record)
        copy.summary |= {name: json.loads(text) for name, text in summary.items()}
    except TableError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        copy.damage = f"{file.name}: {type(error).__name__}: {error}"


def _take(copy: OfflineCopy, record: Any) -> None:
    """Add what one entry tells; most kinds tell nothing of the run."""
    match record.WhichOneof("record_type"):
        case "run":
            copy.begun = True
            copy.group = record.run.run_group or copy.group
            copy.config |= _values(record.run.config.update)
        case "config":
            copy.config |= _values(record.config.update)
        case "history":
            row = {"_step": record.history.step.num, **_values(record.history.item)}
            copy.history.append(history_row(row))
        case "exit":
            copy.state = "failed" if record.exit.exit_code else FINISHED


def _texts(items: Any) -> dict[str, str]:
    """Names and JSON texts of protobuf items; a nested name is joined by dots."""
    return {item.key or ".".join(item.nested_key): item.value_json for item in items}


def _values(items: Any) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in _texts(items).items()}
