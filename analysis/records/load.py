"""Runs as one DataFrame, from wherever they are kept: a row per run, and why a run is not fitted.

Columns: run_id, sweep, status, source, folder, error, every result and cost field of record.json
under its own name, the numbers of evaluation.json, `loss` (the chosen column) and `excluded` (""
for a usable run, else the reason). docs/loading.md has the whole table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from analysis.errors import TableError
from analysis.laws.forms import Array
from analysis.records.columns import budgets, numbers
from analysis.records.exclusions import (
    DEATH_MEASURES,
    MOST_DEAD,
    exclusions,
    reasons,
    refuse_checkpoints,
    refuse_rejected,
)
from analysis.records.mixtures import SAME_FOR_ALL, refuse_mixtures
from analysis.records.rows import frame_of
from analysis.records.sources import Source, origins
from analysis.records.table import RunTable, table_from_frame
from scaling.runs.record import Status

__all__ = [
    "DEATH_MEASURES",
    "DEFAULT_LOSS",
    "MOST_DEAD",
    "REJECTED",
    "budgets",
    "exclusions",
    "load_runs",
    "numbers",
    "refuse_mixtures",
    "runs_table",
]

DEFAULT_LOSS = "normalized_mse"
REJECTED = "rejected"
"""The word of `allow` for sweeps of which more than a fifth is unusable."""
_OF_A_TABLE = ("run_id", "n_latents", "k", "seed", "flops_dense", "subject_params", "converged")


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
    allowed = _allowed(allow)
    frame = frame_of([row for origin in origins(source) for row in origin.rows()])
    refuse_checkpoints(frame)
    frame["loss"] = _loss_of(frame, loss)
    frame["excluded"] = reasons(frame, loss)
    if REJECTED not in allowed:
        refuse_rejected(frame)
    refuse_mixtures(frame.loc[frame["excluded"] == ""], allowed)
    return frame


def runs_table(frame: pd.DataFrame, loss: str = DEFAULT_LOSS) -> RunTable:
    """The usable runs of `load_runs`. TableError where none is left."""
    usable = frame.loc[frame["excluded"] == ""]
    dropped = exclusions(frame)
    if usable.empty:
        found = "; ".join(sorted({reason for _, reason in dropped}))
        raise TableError(
            f"none of the {len(frame)} runs can be used ({found}); finish the sweep by calling "
            "it again, then repeat this."
        )
    columns = {name: usable[name] for name in _OF_A_TABLE if name in usable}
    table = table_from_frame(
        pd.DataFrame({**columns, "tokens": budgets(usable), loss: usable["loss"]}),
        source="the sweep",
        loss=loss,
    )
    return replace(table, dropped=dropped)


def _allowed(allow: str | Iterable[str]) -> frozenset[str]:
    names = frozenset([allow] if isinstance(allow, str) else allow)
    unknown = sorted(names - {*SAME_FOR_ALL, REJECTED})
    if unknown:
        raise TableError(
            f"allow names {unknown[0]}, which nothing refuses; it takes {REJECTED} and the columns "
            f"{', '.join(SAME_FOR_ALL)}."
        )
    return names


def _loss_of(frame: pd.DataFrame, loss: str) -> Array:
    if Status.done in set(frame["status"]) and loss not in frame:
        raise TableError(
            f"the records have no result field {loss}; choose normalized_mse or normalized_mse_ema."
        )
    return numbers(frame, loss)
