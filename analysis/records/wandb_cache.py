"""What was read from W&B, on disk per run: finished runs are asked for once.

In $XDG_CACHE_HOME/sae-scaling/wandb/SERVER/ENTITY/PROJECT:

    RUN_ID.json             state, summary, config
    RUN_ID.history.jsonl    logged rows

Rows are appended as they come, so an interrupted reading goes on where it was. A last line
{"complete": true} says that a finished run's rows are all there. Remove the folder to ask anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from analysis.files import cannot_write, replace_text
from analysis.records.rows import Row
from analysis.records.wandb_rows import Copied

_COMPLETE = {"complete": True}
_REMEDY = "set XDG_CACHE_HOME to a writable folder with space"


@dataclass(frozen=True)
class RunCache:
    """The folder of one project."""

    path: Path

    @classmethod
    def of(cls, server: str, entity: str, project: str, root: Path | None = None) -> RunCache:
        parts = (urlsplit(server).netloc or "default", entity, project)
        return cls(Path(root or cache_root(), *(quote(part, safe="") for part in parts)))

    def holds_any(self) -> bool:
        return any(self.path.glob("*.json"))

    def copy(self, run_id: str) -> Copied | None:
        """A finished run as it was read; None where it has to be asked for."""
        try:
            copy = Copied(**json.loads(self._file(run_id, ".json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return copy if copy.is_final else None

    def keep(self, copy: Copied) -> None:
        """Raises TableError where the disk does not take it."""
        with self._writing(copy.run_id, ".json") as file:
            replace_text(file, json.dumps(asdict(copy)), remedy=_REMEDY)

    def history(self, run_id: str) -> tuple[list[Row], bool]:
        """Rows read so far, and whether these are all of a finished run."""
        rows = self._lines(run_id)
        if rows and rows[-1] == _COMPLETE:
            return rows[:-1], True
        return rows, False

    def add_history(self, run_id: str, rows: Sequence[Row], *, complete: bool = False) -> None:
        """Append rows. Raises TableError where the disk does not take them."""
        lines = [*rows, *([_COMPLETE] if complete else [])]
        if not lines:
            return
        with self._writing(run_id, ".history.jsonl") as file, file.open("a") as stream:
            stream.write("".join(json.dumps(line) + "\n" for line in lines))

    @contextmanager
    def _writing(self, run_id: str, suffix: str) -> Iterator[Path]:
        """The file of a run, in a folder that is there."""
        file = self._file(run_id, suffix)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            yield file
        except OSError as error:
            raise cannot_write(file, error.strerror, _REMEDY) from error

    def _lines(self, run_id: str) -> list[Row]:
        """Whole lines; what a kill cut short is removed, or the next row would be joined to it."""
        file = self._file(run_id, ".history.jsonl")
        if not file.exists():
            return []
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            rows: list[Any] = [json.loads(line) for line in whole.splitlines()]
        except ValueError:  # damaged: asked for again
            file.unlink()
            return []
        if len(whole) < len(data):
            os.truncate(file, len(whole))
        return rows

    def _file(self, run_id: str, suffix: str) -> Path:
        return self.path / f"{quote(run_id, safe='')}{suffix}"


def cache_root() -> Path:
    """$XDG_CACHE_HOME/sae-scaling/wandb, in ~/.cache by default."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "sae-scaling", "wandb")
