"""A run on any mesh is the run on one process: gloo processes, every engine, and each known defect.

The differences that are asserted here are the table of docs/distributed.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.cases import Case, Differences, alone, compare, on_rank
from tests.ranks import run_ranks, run_threads

TORCH = [
    Case("torch", "float64", "gather"),
    Case("torch", "float32", "candidates"),
    Case("torch", "float32", "gather", clip=None),
]
ZERO = [
    Case("deepspeed", "float32", "gather", zero_stage=1),
    Case("deepspeed", "float32", "gather", zero_stage=2, resumed_at=10),
]
ZERO_UNCLIPPED = [Case("deepspeed", "float32", "candidates", clip=None)]
FUSED = [Case("fused", "float32", "gather"), Case("fused", "float32", "candidates", clip=None)]
BUTTERFLY = [Case("torch", "float32", "butterfly")]
MESHES = {
    (1, 1): TORCH + FUSED + ZERO,
    (2, 1): TORCH + ZERO,
    (1, 2): TORCH + FUSED + ZERO + BUTTERFLY,
    (2, 2): TORCH + ZERO + ZERO_UNCLIPPED + BUTTERFLY,
    (1, 4): TORCH + FUSED + ZERO + BUTTERFLY,
    (4, 1): TORCH + ZERO,
}
TOLERANCE = {"float32": 1e-6, "float64": 1e-10}


def differences(dp: int, latent: int, folder: Path) -> dict[Case, Differences]:
    cases = MESHES[dp, latent]
    by_rank = run_ranks(on_rank, dp, latent, folder, cases)
    return {
        case: compare([results[i] for results in by_rank], dp, latent, case)
        for i, case in enumerate(cases)
    }


@pytest.mark.parametrize(("dp", "latent"), MESHES)
def test_every_mesh_and_engine_is_the_run_on_one_process(
    dp: int, latent: int, tmp_path: Path
) -> None:
    for case, found in differences(dp, latent, tmp_path).items():
        assert found.largest < TOLERANCE[case.dtype], (case, found)


def test_the_case_has_everything_in_it() -> None:
    """Dead latents at work, clipping at work, one shard hot."""
    run = alone(Case())
    assert 0 < run["dead"][-1] < 1
    assert run["curves"]["aux_loss"][-1] > 0
    assert run["curves"]["grad_norm"].min() > 0.05
    hot = (run["code"] > 0)[:, : run["code"].shape[1] // 8].sum() / (run["code"] > 0).sum()
    assert hot > 0.5


FLOAT64 = Case("torch", "float64", "gather")
DEFECTS = {
    "norm_of_one_shard": FLOAT64,
    "results_not_awaited": FLOAT64,
    "stale_gradients": FLOAT64,
    "no_candidates": FLOAT64,
    "few_candidates": FLOAT64,
    "coarse_bisection": FLOAT64,
    "auxk_without_gradient": FLOAT64,
    "auxk_with_pre_bias": FLOAT64,
    "dead_counts_per_rank": FLOAT64,
    "moments_of_rank_0_alone": Case("torch", "float64", "gather", resumed_at=10),
    "unit_columns": FLOAT64,
    "mean_of_ratios": FLOAT64,
    "b_pre_of_one_shard": FLOAT64,
    "variance_of_one_replica": FLOAT64,
}


def test_threads_stand_for_processes() -> None:
    """Without a defect the comparison below holds, so that what it notices is the defect."""
    case = Case("torch", "float64", "gather", resumed_at=10)
    results = [found[0] for found in run_threads(lambda mesh: on_rank(mesh, [case]), 2, 2)]
    assert compare(results, 2, 2, case).largest < TOLERANCE["float64"]


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_comparison_notices(defect: str) -> None:
    case = DEFECTS[defect]
    alone(case)  # before anything is patched
    with pytest.MonkeyPatch.context() as patch:
        from tests.distributed import defects

        getattr(defects, defect)(patch)
        results = run_threads(lambda mesh: on_rank(mesh, [case])[0], 2, 2)
        assert compare(results, 2, 2, case).largest > TOLERANCE["float32"]


@pytest.mark.parametrize("defect", ["zero_norm_of_one_shard", "master_copy_wins"])
def test_the_comparison_notices_in_deepspeed(defect: str, tmp_path: Path) -> None:
    case = Case("deepspeed", "float32", "gather")
    results = [found[0] for found in run_ranks(on_rank, 1, 2, tmp_path, [case], defect)]
    assert compare(results, 1, 2, case).largest > TOLERANCE["float32"]
