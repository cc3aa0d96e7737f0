"""What a source may be, told apart by its look: a folder, a table, W&B's projects and files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis.errors import TableError
from analysis.files import checked_path
from analysis.records.collected import Collected
from analysis.records.folders import Folders
from analysis.records.rows import Origin
from analysis.records.wandb_offline import OfflineFolder, is_offline_folder
from analysis.records.wandb_online import WandbProject

Source = str | os.PathLike[str] | Sequence["Source"]

_WANDB = "wandb:"
_PROJECT = re.compile(r"(?P<entity>[\w.-]+)/(?P<project>[\w.-]+)(/(?P<group>[^/].*))?")


def origins(source: Source) -> list[Origin]:
    """The places that `source` names, in its order. TableError for one that cannot be any."""
    if isinstance(source, str | os.PathLike):
        return [_origin(os.fspath(source))]
    if not isinstance(source, Iterable) or isinstance(source, bytes):
        raise TableError(
            f"{source!r} is no source of runs; give the path of a sweep's folder or of a table "
            "(.csv), wandb:ENTITY/PROJECT[/GROUP], or a list of these."
        )
    found = [origin for part in source for origin in origins(part)]
    if not found:
        raise TableError(
            "the list of sources is empty; name at least one folder, table or W&B project."
        )
    return found


def _origin(text: str) -> Origin:
    if text.startswith(_WANDB):
        return _wandb(text.removeprefix(_WANDB))
    path = checked_path(Path(text))
    if path.is_dir():
        return OfflineFolder(path) if is_offline_folder(path) else Folders(path)
    if path.is_file() and path.suffix == ".csv":
        return Collected(path)
    what = "not a folder, nor a table (.csv)" if path.exists() else "not a folder: nothing is there"
    raise TableError(
        f"{text} is {what}; give the folder of a sweep (RUNS_DIR/SWEEP), a table made by "
        "`python -m analysis.collect`, or wandb:ENTITY/PROJECT[/GROUP]."
    )


def _wandb(text: str) -> Origin:
    path = checked_path(Path(text))
    for folder in (path, path / "wandb"):  # as it is, or as the mirror puts it in a sweep
        if folder.is_dir() and is_offline_folder(folder):
            return OfflineFolder(folder)
    match = _PROJECT.fullmatch(text)
    if path.is_absolute() or text.startswith(".") or path.exists() or match is None:
        raise TableError(
            f"{_WANDB}{text} is neither ENTITY/PROJECT[/GROUP] nor a folder with offline-run-* "
            "folders in it; give one of the two."
        )
    return WandbProject(match["entity"], match["project"], match["group"])
