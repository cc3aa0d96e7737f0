"""What is done for dead latents: what is settled, what it means for the run's identity, and what is
refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.activations.build import prepare
from scaling.errors import UserError
from scaling.plan import RunPlan
from scaling.sweep.planner import make_plan
from scaling.sweep.validate import validate
from tests.compose import composed, tiny

RESAMPLED = ["autoencoder.dead_treatment=resample", "autoencoder.resample_every_tokens=2_048"]


def plan_of(tmp_path: Path, *overrides: str) -> RunPlan:
    config = tiny(*overrides)
    validate(config, n_train=None)
    return make_plan(config, prepare(config.activations, tmp_path, progress=lambda _: None))


def test_each_treatment_is_a_run_of_its_own(tmp_path: Path) -> None:
    treatments = [
        [],
        ["autoencoder.dead_treatment=none"],
        ["autoencoder.dead_treatment=ghost_grads"],
        RESAMPLED,
        [*RESAMPLED, "autoencoder.resample_until=0.9"],
    ]
    plans = [plan_of(tmp_path, *treatment) for treatment in treatments]
    assert len({plan.run_id for plan in plans}) == len(plans)
    assert [plan.autoencoder.aux_coef for plan in plans] == [1 / 32, 0, 0, 0, 0]
    for plan in plans:
        assert RunPlan.from_json(plan.to_json()).run_id == plan.run_id


def test_auxk_of_no_weight_is_no_treatment(tmp_path: Path) -> None:
    off = plan_of(tmp_path, "autoencoder.aux_coef=0")
    assert off.run_id == plan_of(tmp_path, "autoencoder.dead_treatment=none").run_id
    assert off.autoencoder.dead_treatment == "none"


def test_resampling_is_settled_in_steps(tmp_path: Path) -> None:
    ae = plan_of(tmp_path, *RESAMPLED, "train.batch_tokens=256", "train.tokens=10_240").autoencoder
    assert (ae.resample_every_steps, ae.resample_until_step) == (8, 20)
    ae = plan_of(tmp_path, RESAMPLED[0], "train.tokens=20_600").autoencoder
    assert (ae.resample_every_steps, ae.resample_until_step) == (10, 40)


def test_only_the_torch_engine_does_these(tmp_path: Path) -> None:
    for treatment in (["autoencoder.dead_treatment=ghost_grads"], RESAMPLED):
        assert plan_of(tmp_path, *treatment).execution.engine == "torch"
        with pytest.raises(UserError, match="engine=fused with autoencoder=topk"):
            plan_of(tmp_path, *treatment, "engine=fused")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*RESAMPLED[:1], "autoencoder.resample_until=0.1"], "=None .null: an eighth"),
        (["autoencoder.resample_every_tokens=4096"], "is not read with .*=auxk"),
        (["autoencoder.resample_until=-1"], "resample_until=-1.0 is not read with .*=auxk"),
        ([*RESAMPLED, "autoencoder.resample_every_tokens=100"], "resample_every_tokens=100 is out"),
        ([*RESAMPLED, "autoencoder.resample_every_tokens=6_000"], "at most 5120"),
        ([*RESAMPLED, "autoencoder.resample_until=1.5"], "resample_until=1.5 is out of range"),
        (["autoencoder=relu", "autoencoder.dead_treatment=auxk"], "not defined for .*=relu"),
    ],
)
def test_what_is_refused_is_named_with_its_remedy(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(tiny("train.batch_tokens=256", *overrides), n_train=None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["autoencoder=matryoshka", "autoencoder.prefixes=[0.5]"], r"prefixes=\[0.5\] is \[32\]"),
        (["autoencoder=matryoshka", "autoencoder.prefixes=[0.001,1]"], r"is \[0, 64\]"),
        (["autoencoder=matryoshka", "autoencoder.prefixes=[]"], r"prefixes=\[\]"),
        (["autoencoder=matryoshka", "autoencoder.prefixes=[nan,1]"], "nan is neither a share"),
        (["autoencoder=matryoshka", "autoencoder.prefixes=[inf,1]"], "inf is neither a share"),
        (["autoencoder=matryoshka", "autoencoder.prefixes=[[1],1]"], "is neither a share"),
        (["autoencoder=matryoshka", "autoencoder.prefixes=[3.4,64]"], "3.4 .* nor a whole number"),
        (["autoencoder=multi_topk", "autoencoder.wide_factor=0"], "wide_factor=0 is out of range"),
        (["autoencoder=batch_topk", "autoencoder.threshold_decay=1"], "threshold_decay=1.0 is out"),
        (["autoencoder=batch_topk", "mesh.latent=2", "mesh.capacity_factor=1"], "capacity_factor"),
        (["autoencoder=batch_topk", "engine=fused"], "engine=fused with autoencoder=batch_topk"),
        (["autoencoder=multi_topk", "autoencoder.k=65"], "k=65 is larger than"),
    ],
)
def test_variants_of_topk_refuse_by_name(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_of(tmp_path, *overrides)


def test_what_variants_settle(tmp_path: Path) -> None:
    nested = plan_of(tmp_path, "autoencoder=matryoshka").autoencoder
    assert nested.options == {"prefixes": [2, 6, 14, 30, 64]}
    counts = plan_of(tmp_path, "autoencoder=matryoshka", "autoencoder.prefixes=[10,0.5,1]")
    assert counts.autoencoder.options == {"prefixes": [10, 32, 64]}
    multi = plan_of(tmp_path, "autoencoder=multi_topk", "autoencoder.k=20").autoencoder
    assert multi.options == {"wide_k": 64, "wide_weight": 0.125}
    assert multi.counted_k == 64 + 15
    config = composed("autoencoder=batch_topk", "autoencoder.n_latents=64", "autoencoder.k=4")
    assert config.autoencoder.dead_treatment == "auxk"
