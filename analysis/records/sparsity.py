"""The sparsity of a run: the k it was given, or the L0 that came of its penalty.

Architectures that choose latents by count (TopK and its kin) are given k. For the others sparsity
is an outcome: their records have k null and the measured `l0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.records.columns import LOSSES, is_number, numbers
from scaling.runs.record import Status

Sparsity = Literal["k", "l0"]
"""The column that laws take as k."""
COORDINATES = ("n_latents", "k", "tokens", "seed")
"""Without these a record is no point of a law."""
_L0_OF: dict[str, str] = dict(zip(LOSSES, ("l0", "l0_ema"), strict=True))
GIVEN_K = frozenset({"topk", "batch_topk", "multi_topk", "matryoshka"})
"""Architectures whose k is set; a record of one of them without k is incomplete."""


def coordinates(row: Mapping[str, Any], loss: str) -> tuple[str, ...]:
    """The columns without which `row` is no point: L0 measured with that loss stands for a k not
    set."""
    return tuple(_L0_OF[loss] if name == "k" and is_outcome(row) else name for name in COORDINATES)


def with_l0_of(frame: pd.DataFrame, loss: str) -> pd.DataFrame:
    """`frame` whose column l0, where sparsity is an outcome, is of the weights that `loss` is of.

    Averaged weights are of an earlier time, at which more latents were active.
    """
    column = _L0_OF[loss]
    if column == "l0" or column not in frame:
        return frame
    outcome = np.isnan(numbers(frame, "k"))
    return frame.assign(l0=np.where(outcome, numbers(frame, column), numbers(frame, "l0")))


def is_outcome(row: Mapping[str, Any]) -> bool:
    """Whether sparsity is an outcome: no k, of a named architecture that is given none."""
    name = row.get("autoencoder")
    return isinstance(name, str) and name not in GIVEN_K and not is_number(row.get("k"))


def lacks_k(frame: pd.DataFrame) -> bool:
    """Whether usable runs (columns as in `load_runs`) have runs whose sparsity is an outcome."""
    used = frame.loc[frame["excluded"] == ""]
    return bool(len(used)) and bool(np.isnan(numbers(used, "k")).any())


def with_sparsity(frame: pd.DataFrame, sparsity: Sparsity, source: str) -> pd.DataFrame:
    """`frame` with the column `sparsity` as its k.

    Raises:
        TableError: finished runs have no k (sparsity is an outcome) and none was chosen for them.
    """
    done = frame.loc[frame["status"] == Status.done] if "status" in frame else frame
    if sparsity == "l0":
        if "l0" not in frame:
            raise TableError(f"{source} has no column l0, which --k l0 takes as k; leave it out.")
        return frame.assign(k=frame["l0"])
    measured = numbers(done, "l0") > 0
    without = np.isnan(numbers(done, "k")) & measured
    if without.any():
        raise TableError(
            f"{source}: {without.sum()} of {len(done)} runs have no k: their sparsity is an "
            "outcome of a penalty, and l0 is what was measured. Give --k l0 to have measured L0 "
            "stand for k in the law, or compare the runs at equal L0: python -m "
            "analysis.equal_l0 RUNS --l0 32."
        )
    return frame
