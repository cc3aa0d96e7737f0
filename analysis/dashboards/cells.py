"""The runs that a dashboard shows: id, n, k and tokens of each, read from the plans of a sweep."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import TableError
from scaling.runs.store import RunFolder, SweepStore

# W&B's filters are built from text, where =, <, > and quotes have meanings; names of views refuse
# symbols altogether.
_PLAIN_NAME = re.compile(r"[\w.-]+( [\w.-]+)*")


@dataclass(frozen=True)
class Cell:
    """A planned run. `run_id` is its id in W&B, too."""

    run_id: str
    n: int
    k: int
    tokens: int


@dataclass(frozen=True)
class Sweep:
    """`name` is the group of the runs in W&B; `cells` is empty for a sweep that is elsewhere.

    `project` and `entity` are those its plans name, None where they do not.
    """

    name: str
    cells: tuple[Cell, ...] = ()
    project: str | None = None
    entity: str | None = None


def read_sweep(source: str) -> Sweep:
    """A sweep's folder RUNS_DIR/SWEEP, or the bare name of one whose folder is on another machine.

    Raises:
        TableError: a path that is no folder, a folder without runs, a damaged plan, or a name that
            a W&B filter cannot hold.
    """
    path = Path(source)
    if not path.is_dir():
        if "/" in source:
            raise TableError(
                f"{source} is not a folder; give the folder of a sweep, RUNS_DIR/SWEEP, or its "
                "bare name where the folder is on another machine."
            )
        return Sweep(filterable(source, "the sweep's name"))
    # A path such as "." has no name of its own.
    store = SweepStore(path.resolve())
    plans = {folder.run_id: _plan(folder) for folder in store.folders()}
    if not plans:
        raise TableError(
            f"{source} holds no run (no */plan.json); give the folder of a sweep, RUNS_DIR/SWEEP."
        )
    loggers = [plan.get("config", {}).get("logger", {}) for plan in plans.values()]
    return Sweep(
        filterable(store.name, "the sweep's name"),
        tuple(_cell(store.folder(run_id), plan) for run_id, plan in plans.items()),
        project=_shared(loggers, "project"),
        entity=_shared(loggers, "entity"),
    )


def filterable(name: str, what: str) -> str:
    """`name`, if a W&B filter and a view's name can hold it. TableError otherwise."""
    if not _PLAIN_NAME.fullmatch(name):
        raise TableError(
            f"{what} {name!r} has signs that a W&B filter cannot hold; only letters, digits, '_', "
            "'-', '.' and single spaces can be filtered by. Choose another name for these runs."
        )
    return name


def _plan(folder: RunFolder) -> dict[str, Any]:
    try:
        plan = json.loads(folder.plan_path.read_text())
        if not isinstance(plan, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise _damaged(folder, str(error)) from error
    return plan


def _cell(folder: RunFolder, plan: dict[str, Any]) -> Cell:
    try:
        shape = plan["autoencoder"]
        return Cell(
            folder.run_id, int(shape["n_latents"]), int(shape["k"]), int(plan["tokens_requested"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _damaged(folder: RunFolder, why: str) -> TableError:
    return TableError(
        f"{folder.plan_path} is no plan of a run ({why}); move the folder {folder.path} away to "
        "have the run planned anew."
    )


def _shared(loggers: Sequence[dict[str, Any]], key: str) -> str | None:
    """The value that all plans name; None where they differ or name none."""
    values = {logger.get(key) for logger in loggers}
    return values.pop() if len(values) == 1 else None
