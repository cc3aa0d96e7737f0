"""The metrics by name, with the options of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scaling.evaluation import downstream, probes
from scaling.evaluation.metric import Metric

METRICS: dict[str, tuple[Callable[[], Metric], type[Any]]] = {
    "downstream": (downstream.Downstream, downstream.Options),
    "probes": (probes.Probes, probes.Options),
}
"""In the order in which they run: cheap ones first."""
