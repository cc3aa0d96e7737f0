"""The quality metrics that a report shows, and what better means for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher", "nearer 0", ""]
"""Which way is better; "" for a description, which is neither."""


_DRAWN = {
    **{"downstream": "documents", "probes": "tasks", "explain": "latents", "ablation": "tokens"},
    **dict.fromkeys(("omp", "ksvd", "refinement", "progressive"), "vectors"),
    "explanation_ce": "documents",
}
"""By metric, or by column where a metric's columns differ."""


@dataclass(frozen=True)
class Quality:
    """A column that evaluations add to runs."""

    column: str
    metric: str
    """Of `python -m scaling.evaluate`, that measures it."""
    title: str
    better: Better
    relative: bool = False
    """Changes are read in percent (of ln), and not in the column's own unit."""

    @property
    def drawn(self) -> str:
        """What its standard errors are of; "" where it has none."""
        return _DRAWN.get(self.column, _DRAWN.get(self.metric, ""))

    @property
    def takes_law(self) -> bool:
        """Whether a law of the loss's form is tried: it falls as it gets better, and is above 0."""
        return self.relative and self.better == "lower"


QUALITIES = (
    Quality("downstream_kl", "downstream", "KL of the model's predictions, nats", "lower", True),
    Quality("downstream_delta_ce", "downstream", "rise of cross-entropy, nats", "lower", True),
    Quality("loss_recovered_mean", "downstream", "loss recovered (mean ablation)", "higher"),
    Quality("loss_recovered_zero", "downstream", "loss recovered (zero ablation)", "higher"),
    Quality("probe_loss", "probes", "probe loss, nats", "lower", True),
    Quality("probe_auc", "probes", "AUC of the probes", "higher"),
    Quality("n2g_precision", "explain", "precision of n-gram patterns", "higher"),
    Quality("n2g_recall", "explain", "recall of n-gram patterns", "higher"),
    Quality("explanation_ce", "explain", "cross-entropy on explanations, nats", "lower", True),
    Quality("ablation_sparsity", "ablation", "sparsity of effects", "lower", True),
    Quality("omp_gap", "omp", "encoder's error over OMP's", "lower", True),
    Quality("ksvd_gap", "ksvd", "encoder's error over K-SVD's", "lower", True),
    Quality("refinement_shift", "refinement", "refined magnitudes, relative shift", "nearer 0"),
    Quality("refinement_gain", "refinement", "refined error over the encoder's", "higher"),
    Quality("progressive_double", "progressive", "error at 2 k over error at k", ""),
    Quality("progressive_threshold", "progressive", "error with one threshold over TopK's", ""),
    Quality("density_dead", "density", "dead latents", "lower"),
    Quality("density_silent", "density", "silent latents", "lower"),
    Quality("density_dense", "density", "dense latents", ""),
    Quality("density_median", "density", "median frequency of latents", "", True),
    Quality("density_importance", "density", "share of the top 1% of latents", ""),
)
