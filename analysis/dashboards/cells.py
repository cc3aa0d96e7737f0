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

LONGEST_NAME = 128
"""A sweep of this program has at most 100 characters; beyond 255 no file system has a folder."""
_MOST = 2**62


@dataclass(frozen=True)
class Cell:
    """A planned run. `run_id` is its id in W&B, too."""

    run_id: str
    n: int
    k: int | None  # None where sparsity is an outcome
    tokens: int
    penalty: float | None = None

    @property
    def sparsity(self) -> float:
        """A level that rises with the latents active: k, or the inverse of the penalty."""
        return self.k or 1.0 / (self.penalty or 1.0)


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
    if not _is_folder(path):
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
    loggers = [_logger(store.folder(run_id), plan) for run_id, plan in plans.items()]
    return Sweep(
        filterable(store.name, "the sweep's name"),
        tuple(_cell(store.folder(run_id), plan) for run_id, plan in plans.items()),
        project=_shared(loggers, "project"),
        entity=_shared(loggers, "entity"),
    )


def filterable(name: str, what: str) -> str:
    """`name`, if a W&B filter and a view's name can hold it. TableError otherwise."""
    if len(name) > LONGEST_NAME:
        raise TableError(
            f"{what} {name[:20]}... has {len(name)} characters, more than the {LONGEST_NAME} of a "
            "sweep's or tag's name. Give the name of a sweep, or the path of its folder."
        )
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
    except RecursionError as error:
        raise _damaged(folder, "nested too deeply") from error
    except (OSError, ValueError) as error:
        raise _damaged(folder, str(error)) from error
    return plan


def _is_folder(path: Path) -> bool:
    """False, too, for what the file system cannot have: a name too long, a loop of links."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _logger(folder: RunFolder, plan: dict[str, Any]) -> dict[str, str | None]:
    """project and entity; None for what an older plan does not name."""
    config = plan.get("config", {})
    logger = config.get("logger", {}) if isinstance(config, dict) else None
    if not isinstance(logger, dict):
        raise _damaged(folder, "config.logger is not an object")
    named = {key: logger.get(key) for key in ("project", "entity")}
    for key, value in named.items():
        if not (value is None or isinstance(value, str)):
            raise _damaged(folder, f"config.logger.{key} = {value!r} is not text")
    return named


def _cell(folder: RunFolder, plan: dict[str, Any]) -> Cell:
    try:
        shape = plan["autoencoder"]
        n, k, tokens = shape["n_latents"], shape["k"], plan["tokens_requested"]
        penalty = None if k is not None else _penalty(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error
    whole = [("n_latents", n), ("tokens_requested", tokens), *([] if k is None else [("k", k)])]
    for name, value in whole:
        if not (isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST):
            raise _damaged(folder, f"{name} = {str(value)[:40]} is not a whole number above 0")
    return Cell(folder.run_id, n, k, tokens, penalty)


def _penalty(shape: dict[str, Any]) -> float | None:
    """Of a run without k; None where another key sets its sparsity. ValueError for no weight."""
    penalty = (shape.get("options") or {}).get("penalty")
    if penalty is None:
        return None
    if not (isinstance(penalty, int | float) and 0 < penalty < _MOST):
        raise ValueError(f"penalty = {str(penalty)[:40]} is not above 0")
    return float(penalty)


def _damaged(folder: RunFolder, why: str) -> TableError:
    return TableError(
        f"{folder.plan_path} is no plan of a run ({why}); move the folder {folder.path} away to "
        "have the run planned anew."
    )


def _shared(loggers: Sequence[dict[str, Any]], key: str) -> str | None:
    """The value that all plans name; None where they differ or name none."""
    values = {logger.get(key) for logger in loggers}
    return values.pop() if len(values) == 1 else None
