"""perf/mfu: which share of what the devices can compute a run's training takes."""

from __future__ import annotations

from scaling.hardware import matmul_flops_per_s
from scaling.plan import RunPlan


def utilization(plan: RunPlan, ranks: int, tokens_per_s: float) -> float:
    """Sparse-convention FLOPs over the measured matmul rate of the devices of all `ranks`."""
    flops = plan.autoencoder.flops_sparse(plan.source.d_model)
    return tokens_per_s * flops / (matmul_flops_per_s(plan.execution.device) * ranks)
