"""A run of W&B as a row: the summary and config that the mirror wrote (docs/records.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from analysis.errors import TableError
from analysis.records.rows import (
    FIELDS,
    UNREADABLE,
    Row,
    as_field,
    evaluation_columns,
    flat_type_problem,
    unreadable,
)
from analysis.records.sparsity import COORDINATES, is_outcome
from scaling.runs.evaluation_columns import EVALUATION_IN_SUMMARY
from scaling.runs.fields import RESULT_FIELDS
from scaling.runs.record import FINAL, Status

FINISHED = "finished"
_STATUS_OF_STATE = {
    FINISHED: Status.done,
    **dict.fromkeys(("crashed", "failed", "killed"), Status.failed),
    **dict.fromkeys(("preempted", "preempting"), Status.preempted),
    **dict.fromkeys(("running", "pending"), Status.running),
}
"""Of a run that names no status itself."""
_IN_CONFIG = {
    "autoencoder": ("n_latents", "k", "k_aux", "dead_after_tokens"),
    "train": ("batch_tokens", "lr", "decay_fraction", "seed"),
    "activations": ("normalization", "layer"),
}
"""Where a run that has no result yet, and so no summary, says what it is."""
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""As W&B spells, in text, numbers that JSON has not."""


@dataclass
class Copied:
    """What W&B has of one run."""

    run_id: str
    group: str = ""
    state: str = "running"
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """As the mirror noted it, or else what W&B's state says of another program's run.

        That state alone is not enough: W&B calls a run finished whose mirror has stopped, and it
        may still train. Its result is not there then.
        """
        stated = self.summary.get("status")
        if isinstance(stated, str) and stated in {*Status}:
            return Status(stated)
        status = _STATUS_OF_STATE.get(self.state, Status.running)
        has_result = "n_latents" in self.summary or "n_latents" in self.config
        return status if has_result or status is not Status.done else Status.running

    @property
    def is_final(self) -> bool:
        """Nothing will be added to it."""
        return self.status in FINAL


def row_of_copy(copy: Copied, *, source: str, folder: str = "") -> Row:
    """The row of a run; a value of the wrong type makes it unreadable."""
    fields = {**_from_config(copy.config), **copy.summary}
    row: Row = {
        name: as_field(name, _decoded(name, plain(fields[name])))
        for name in FIELDS
        if name in fields and not isinstance(fields[name], Mapping)
    }
    row |= _evaluation(copy.summary)
    row |= {"run_id": copy.run_id, "sweep": copy.group, "status": str(copy.status)}
    row |= {"source": source, "folder": folder, "error": ""}
    problem = flat_type_problem(row)
    return unreadable(copy.run_id, problem, folder=folder, source=source) if problem else row


def _evaluation(summary: Mapping[str, Any]) -> Row:
    """The columns of evaluation.json, which the mirror sends under a prefix."""
    values = {
        name.removeprefix(EVALUATION_IN_SUMMARY): plain(value)
        for name, value in summary.items()
        if name.startswith(EVALUATION_IN_SUMMARY)
    }
    columns, problem = evaluation_columns(values)
    return {**columns, "evaluation_error": problem} if problem else columns


def _decoded(name: str, value: Any) -> Any:
    """Objects and lists are sent as JSON text; what is none stays, and is of the wrong type."""
    if not {dict, list} & {*FIELDS[name].types} or not isinstance(value, str):
        return value
    with suppress(ValueError, RecursionError):
        return json.loads(value)
    return value


def refuse_foreign(rows: Sequence[Row], source: str, keys: Sequence[str]) -> None:
    """TableError where no run has the columns a law needs: another program's project.

    keys: what the summaries have instead, for the message.
    """
    done = [row for row in rows if row["status"] == Status.done]
    judged = done or [row for row in rows if row["status"] != UNREADABLE]
    needed = [name for name in COORDINATES if name != "k" or not any(map(is_outcome, judged))]
    missing = [name for name in needed if all(row.get(name) is None for row in judged)]
    # Without a result, ours are known by this one: their config has it.
    if not judged or not (missing if done else "n_latents" in missing):
        return
    found = ", ".join([*keys][:20]) or "nothing"
    raise TableError(
        f"{source}: none of its {len(judged)} runs has {', '.join(missing)} in its summary; there "
        f"is: {found}. A run that this program trained with logger=wandb has "
        f"{', '.join(RESULT_FIELDS)}; check entity, project and group."
    )


def plain(value: Any) -> Any:
    """A JSON value with null for numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if isinstance(value, str) and value in _NOT_FINITE else value


def history_row(row: Mapping[str, Any]) -> Row:
    """A logged row with its `step`, without W&B's own columns."""
    step = row.get("step", row.get("_step"))
    kept = {name: plain(value) for name, value in row.items() if not name.startswith("_")}
    known = isinstance(step, int | float) and math.isfinite(step)
    return {**kept, "step": int(step) if known else -1}


def _from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields from the sections of our config, or from the top of a foreign one."""
    found = {name: config[name] for name in RESULT_FIELDS if name in config}
    for section, names in _IN_CONFIG.items():
        values = config.get(section)
        if isinstance(values, Mapping):
            found |= {name: values[name] for name in names if name in values}
    return found
