"""The metrics by name, with the options of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scaling.evaluation import (
    ablation,
    density,
    downstream,
    explain,
    ksvd,
    omp,
    probes,
    progressive,
    refine,
)
from scaling.evaluation.metric import Metric

METRICS: dict[str, tuple[Callable[[], Metric], type[Any]]] = {
    "density": (density.Density, density.Options),
    "refinement": (refine.Refinement, refine.Options),
    "progressive": (progressive.Progressive, progressive.Options),
    "downstream": (downstream.Downstream, downstream.Options),
    "omp": (omp.SparseCoding, omp.Options),
    "ksvd": (ksvd.KSVD, ksvd.Options),
    "ablation": (ablation.Ablation, ablation.Options),
    "explain": (explain.Explain, explain.Options),
    "probes": (probes.Probes, probes.Options),
}
"""In the order in which they run: cheap ones first."""
