"""Runs as one DataFrame, from wherever they are kept: a row per run, and why a run is not fitted.

Columns: run_id, sweep, status, source, folder, error, every result and cost field of record.json
under its own name, the numbers of evaluation.json, `loss` (the chosen column) and `excluded` (""
for a usable run, else the reason). docs/loading.md has the whole table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import TableError
from analysis.laws.forms import Array
from analysis.records.checkpoints import refuse_repeated_runs
from analysis.records.collected import read_rows
from analysis.records.columns import DEFAULT_LOSS, LOSSES, budgets, numbers
from analysis.records.exclusions import exclusions, reasons
from analysis.records.mixtures import allowed, refuse_mixtures
from analysis.records.rejected import REJECTED, Judged, refuse_rejected
from analysis.records.rows import LEADING, Row, frame_of
from analysis.records.sources import Source, origins
from analysis.records.sparsity import Sparsity, with_l0_of
from analysis.records.table import (
    CONVERGENCE_COLUMNS,
    RunTable,
    columns_of_file,
    read_table,
    table_from_frame,
)
from scaling.runs.record import Status

_OF_A_TABLE = (
    *("run_id", "n_latents", "k", "l0", "seed", "flops_dense", "subject_params", "converged"),
)


def load_runs(
    source: Source, *, loss: str = DEFAULT_LOSS, allow: str | Iterable[str] = ()
) -> pd.DataFrame:
    """Read runs; one row each, usable or not.

    Args:
        source: a sweep folder, the folder of one run, a folder of sweeps, a table made by
            `python -m analysis.collect` (.csv), "wandb:ENTITY/PROJECT[/GROUP]", an offline W&B
            folder, or a list of these.
        loss: the column that becomes `loss`; one for all runs.
        allow: columns in which usable runs may differ although their losses are then not
            comparable (`mixtures.SAME_FOR_ALL`), and "rejected": keep what is left of a sweep of
            which more than a fifth is unusable.

    Raises:
        TableError: no runs there; runs that mix what `allow` does not name; checkpoints of one
            run; too many rejected; a record lacks `loss`.
    """
    words = allowed(allow)
    return _judged([row for origin in origins(source) for row in origin.rows()], loss, words)


def _judged(rows: Sequence[Row], loss: str, allow: Collection[str]) -> pd.DataFrame:
    frame = frame_of(rows)
    refuse_repeated_runs(frame)
    frame["loss"] = _loss_of(frame, loss)
    frame["excluded"] = reasons(frame, loss)
    check_runs(frame, allow)
    return with_l0_of(frame, loss)


def check_runs(frame: pd.DataFrame, allow: Collection[str]) -> None:
    """TableError where too many runs are excluded, or those in use mix what `allow` does not
    name; columns as in `load_runs`."""
    if REJECTED not in allow:
        judged = zip(frame["run_id"], frame["status"], frame["excluded"], strict=True)
        refuse_rejected(Judged(*map(str, run)) for run in judged)
    refuse_mixtures(frame.loc[frame["excluded"] == ""], allow)


def read_runs(
    path: Path,
    *,
    loss: str | None = None,
    response: str = "loss",
    allow: str | Iterable[str] = (),
    sparsity: Sparsity = "k",
) -> RunTable:
    """A CSV table of any origin, as fits take it.

    A table of records (made by `python -m analysis.collect`, known by its first columns) is read as
    `load_runs` and `runs_table` read the runs themselves, refusals included; any other by
    `read_table`, which can check only what its columns tell. With `sparsity` "l0", measured L0
    is taken as k.

    Raises:
        TableError: as those.
    """
    words = allowed(allow)
    if not {*LEADING} <= columns_of_file(path):
        how: dict[str, Any] = {"loss": loss, "response": response, "sparsity": sparsity}
        return read_table(path, allow=words, **how)
    # Tokens to convergence are of runs whose loss is sound.
    of_loss = loss if loss is not None and response == "loss" else DEFAULT_LOSS
    frame = _judged(read_rows(path), of_loss, words)
    value = of_loss if response == "loss" else loss
    value = value or next(name for name in CONVERGENCE_COLUMNS if name in {*frame, "tokens"})
    return runs_table(frame, value, response, source=str(path), sparsity=sparsity)


def runs_table(
    frame: pd.DataFrame,
    loss: str = DEFAULT_LOSS,
    response: str = "loss",
    *,
    source: str = "the sweep",
    sparsity: Sparsity = "k",
) -> RunTable:
    """The usable runs of `load_runs`. TableError where none is left.

    `response` "tokens" is for laws of tokens to convergence: `loss` then names their column, and
    tokens are as trained, for a run that its stopping rule ended was asked for more.
    """
    usable = frame.loc[frame["excluded"] == ""]
    dropped = exclusions(frame)
    if usable.empty:
        found = "; ".join(sorted({reason for _, reason in dropped}))
        raise TableError(
            f"none of the {len(frame)} runs can be used ({found}); finish the sweep by calling "
            "it again, then repeat this."
        )
    columns = {name: usable[name] for name in _OF_A_TABLE if name in usable}
    if response == "loss":
        columns |= {"tokens": budgets(usable), loss: usable["loss"]}
    elif loss in usable:
        columns[loss] = usable[loss]
    how: dict[str, Any] = {"source": source, "response": response, "sparsity": sparsity}
    table = table_from_frame(pd.DataFrame(columns), loss=loss, **how)
    return replace(table, dropped=(*dropped, *table.dropped))


def _loss_of(frame: pd.DataFrame, loss: str) -> Array:
    if loss in frame and loss not in LOSSES:
        raise TableError(
            f"{loss} is no held-out loss; choose {' or '.join(LOSSES)}. How what evaluations "
            "measured moves with n and k, and whether a law holds: python -m analysis.quality."
        )
    if Status.done in set(frame["status"]) and loss not in frame:
        raise TableError(f"the records have no result field {loss}; choose {' or '.join(LOSSES)}.")
    return numbers(frame, loss)
