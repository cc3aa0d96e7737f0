"""A run's identity is what determines its result: no more, no less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaling.activations.build import prepare
from scaling.plan import RunPlan
from scaling.sweep import estimate
from scaling.sweep.estimate import makespan_s, with_estimates
from scaling.sweep.planner import make_plan
from tests.compose import tiny


def plan_of(*overrides: str) -> RunPlan:
    config = tiny(*overrides)
    spec = prepare(config.activations, Path("unused"), progress=lambda _: None)
    return make_plan(config, spec)


@pytest.mark.parametrize(
    "override",
    [
        "autoencoder.n_latents=65",
        "autoencoder.k=5",
        "autoencoder.k_aux=8",
        "autoencoder.dead_after_tokens=1000",
        "autoencoder.b_pre_init=mean",
        "train.tokens=20_480",
        "train.batch_tokens=128",
        "train.lr=1e-3",
        "train.lr_scale=2",
        "train.decay_fraction=0.5",
        "train.ema_decay=0.9",
        "train.clip_norm=1",
        "train.seed=1",
        "train.shuffle_block=4",
        "numerics.precision=float64",
        "numerics.precision=bf16",
        "activations.seed=1",
        "activations.noise=0.1",
        "activations.eval_tokens=513",
    ],
)
def test_what_determines_the_result_changes_the_id(override: str) -> None:
    assert plan_of(override).run_id != plan_of().run_id


@pytest.mark.parametrize(
    "override",
    [
        "launcher.threads=2",
        "kernels=reference",
        "engine=torch",
        "runs_dir=elsewhere",
        "sweep_name=other",
        "logger=wandb",
        "logger.tags=[x]",
        "checkpoint.every_tokens=512",
        "checkpoint.keep=5",
        "evaluation.batch_tokens=100",
        "activations.max_tokens=99",  # planted vectors are unlimited
        "debug.profile=true",
    ],
)
def test_what_does_not_keeps_it(override: str) -> None:
    assert plan_of(override).run_id == plan_of().run_id


def test_a_rate_given_or_ruled_is_the_same_run() -> None:
    ruled = plan_of()
    assert plan_of(f"train.lr={ruled.train.lr!r}").run_id == ruled.run_id


def test_identity_is_pinned() -> None:
    """Changes only with numerics_version or the identity's form: stored runs depend on it."""
    assert plan_of().run_id == "7c30b5ba0a6d"


def test_plans_survive_json() -> None:
    plan = plan_of()
    assert RunPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_an_edited_plan_is_refused() -> None:
    row = plan_of().to_json()
    row["train"] = row["train"] | {"lr": 1.0}
    with pytest.raises(ValueError, match="was edited"):
        RunPlan.from_json(row)


def test_whole_batches_only() -> None:
    plan = plan_of("train.tokens=10_000")
    assert (plan.train.steps, plan.tokens, plan.tokens_requested) == (39, 9_984, 10_000)


def test_architectures_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths are alike, and what a step costs is not."""
    times_s = {"relu": 1.0, "gated": 2.0}
    monkeypatch.setattr(estimate, "_step_s", lambda plan: times_s[plan.autoencoder.name])
    plans = with_estimates([plan_of(f"autoencoder={name}") for name in ("gated", "relu", "gated")])
    seconds = [(plan.estimated_s or 0.0) - estimate.OVERHEAD_S for plan in plans]
    assert seconds[0] == seconds[2] == pytest.approx(2 * seconds[1])


def test_estimates_are_positive_and_packed() -> None:
    plans = with_estimates([plan_of(), plan_of("autoencoder.k=8"), plan_of("autoencoder.k=6")])
    seconds = [plan.estimated_s or 0.0 for plan in plans]
    assert all(s > 0 for s in seconds)
    assert makespan_s(plans, 1) == pytest.approx(sum(seconds))
    assert max(seconds) <= makespan_s(plans, 2) < sum(seconds)
