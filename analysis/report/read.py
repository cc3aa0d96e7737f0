"""The runs of a report, and which kind of report they call for: laws, or a comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from analysis.ablation.found import Ablation, ablations_of, columns_explained
from analysis.records.exclusions import with_dead
from analysis.records.load import check_runs, load_runs
from analysis.records.mixtures import RECIPE, allowed
from analysis.records.rejected import REJECTED
from analysis.records.sources import Source
from analysis.report.compared import is_compared


@dataclass(frozen=True)
class Read:
    frame: pd.DataFrame  # as of load_runs; of a comparison, runs with dead latents are in use
    ablations: list[Ablation]
    is_compared: bool


def read_sweep(source: Source, *, loss: str, allow: str | Iterable[str]) -> Read:
    """As `load_runs`, but that a key which is the sweep's question may differ without being
    allowed by name, and that of runs compared those with dead latents count.

    Raises:
        TableError: as `load_runs`.
    """
    words = allowed(allow)
    frame = load_runs(source, loss=loss, allow=(*words, REJECTED, *RECIPE))
    everything = with_dead(frame)
    found = ablations_of(everything)
    if is_compared(everything, found):
        check_runs(everything, (*words, *columns_explained(found, everything)))
        return Read(everything, found, True)
    check_runs(frame, words)
    return Read(frame, [], False)
