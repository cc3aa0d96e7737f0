"""Keys of architectures: what is refused, what a plan settles, what a run costs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scaling import budget
from scaling.activations.build import prepare
from scaling.autoencoder.dense import PenalizedSpec
from scaling.autoencoder.gated import GatedAutoencoder
from scaling.autoencoder.multi_topk import MultiTopKAutoencoder, MultiTopKSpec
from scaling.errors import UserError
from scaling.kernels import load_kernels
from scaling.plan import RunPlan
from scaling.sweep.planner import make_plan
from scaling.sweep.tokens import flops_per_token
from scaling.sweep.validate import validate
from scaling.train.architectures import n_params
from scaling.train.results import planned_results
from tests.compose import tiny


def planned(*overrides: str) -> RunPlan:
    config = tiny(*overrides)
    validate(config, n_train=16_384)
    return make_plan(config, prepare(config.activations, None, progress=lambda _: None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["autoencoder=gated", "autoencoder.decoder_norm=false"], "long decoder rows would evade"),
        (["autoencoder=prolu", "autoencoder.decoder_norm=false"], "or autoencoder.weighted_l1"),
        (["autoencoder=gated", "autoencoder.b_enc=false"], "the bias is its gate"),
        (["autoencoder=prolu", "autoencoder.b_enc=false"], "or take autoencoder=relu"),
        (["autoencoder=jumprelu", "autoencoder.bandwidth=0"], "bandwidth=0.0 .* above 0"),
        (["autoencoder=jumprelu", "autoencoder.initial_threshold=-1"], "initial_threshold=-1"),
        (["autoencoder=jumprelu", "autoencoder.target_l0=65"], "target_l0=65 is more than .*=64"),
        (["autoencoder=jumprelu", "autoencoder.dead_treatment=auxk"], "not defined for .*jumprelu"),
        (["autoencoder=gated", "engine=fused"], "engine=fused with autoencoder=gated"),
        (["autoencoder=relu", "mesh.latent=2", "mesh.capacity_factor=1"], "=1.0 with .*=relu: a"),
        (["autoencoder=relu", "autoencoder.penalty=1e300"], "penalty=1e.300 .* at most 1e.18"),
        (["autoencoder.aux_coef=1e300"], "aux_coef=1e.300 .* at most 1e.18"),
        (["autoencoder=multi_topk", "autoencoder.wide_weight=1e300"], "wide_weight=1e.300 .* most"),
        (["autoencoder=jumprelu", "autoencoder.bandwidth=1e-300"], "bandwidth=1e-300 .* 1e-18 to"),
        (["autoencoder=jumprelu", "autoencoder.initial_threshold=1e300"], "=1e.300 .* 1e-18 to"),
        (["autoencoder=jumprelu", "autoencoder.target_l0=1e-300"], "=1e-300 .* 1e-18 to"),
    ],
)
def test_what_is_not_defined_is_refused_with_its_remedy(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        planned(*overrides)


@pytest.mark.parametrize("kernels", ["auto", "cpu"])
@pytest.mark.parametrize("name", ["relu", "batch_topk"])
def test_a_precision_of_the_kernels_is_refused_where_they_are_not_used(
    name: str, kernels: str
) -> None:
    with pytest.raises(UserError, match=f"autoencoder={name}: .*numerics.precision=float32"):
        planned(f"autoencoder={name}", "numerics.precision=bf16", f"kernels={kernels}")


def test_free_rows_are_allowed_where_the_penalty_weighs_them() -> None:
    free = ["autoencoder.decoder_norm=false", "autoencoder.gradient_projection=false"]
    validate(tiny("autoencoder=prolu", "autoencoder.weighted_l1=true", *free), n_train=16_384)
    validate(tiny("autoencoder=jumprelu", *free), n_train=16_384)


def test_an_architectures_own_keys_are_part_of_the_run() -> None:
    jumprelu = [planned("autoencoder=jumprelu", *more) for more in ([], _TARGET, _WIDTH)]
    assert len({plan.run_id for plan in jumprelu}) == 3
    assert jumprelu[1].autoencoder.options["target_l0"] == 8.0
    assert "L0=8" in jumprelu[1].title
    assert [planned_results(plan, 1)["target_l0"] for plan in jumprelu] == [None, 8.0, None]
    ste, relu = (planned("autoencoder=prolu", f"autoencoder.gradient={g}") for g in ("ste", "relu"))
    assert ste.run_id != relu.run_id


_TARGET = ["autoencoder.target_l0=8"]
_WIDTH = ["autoencoder.bandwidth=0.01"]


@pytest.mark.parametrize(
    ("name", "own"), [("relu", 0), ("prolu", 0), ("gated", 2), ("jumprelu", 1)]
)
def test_params_count_an_architectures_own(name: str, own: int) -> None:
    plan = planned(f"autoencoder={name}")
    d_model = plan.source.d_model
    assert n_params(plan) == 2 * 64 * d_model + 64 + d_model + own * 64


def test_the_flops_of_a_gated_step_are_those_that_torch_counts() -> None:
    """Its second decode is counted, and no gradient of it reaches decoder rows."""
    n, d, tokens = 48, 16, 8
    spec = PenalizedSpec(d_model=d, n_latents=n, mean_predictor_mse=1.0, penalty=0.1)
    weights = {"w_enc": torch.randn(n, d), "w_dec": torch.randn(n, d)}
    model = GatedAutoencoder(spec, {**weights, "b_enc": torch.zeros(n), "b_pre": torch.zeros(d)})
    none = torch.tensor([], dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.encode_with_losses(torch.randn(tokens, d), none)[1].total.backward()
    more = budget.more_products("gated")
    assert counter.get_total_flops() == tokens * budget.flops_per_token_dense(n, d, more=more)
    assert planned("autoencoder=gated").autoencoder.flops_dense(d) == 16 * 64 * d
    assert planned("autoencoder=relu").autoencoder.flops_dense(d) == 12 * 64 * d
    assert planned("autoencoder=gated").autoencoder.flops_sparse(d, 3.0) == 2 * 64 * d + 12 * 3 * d


def test_the_flops_of_two_reconstructions_are_those_that_torch_counts() -> None:
    n, d, tokens = 48, 16, 8
    spec = MultiTopKSpec(
        d_model=d, n_latents=n, mean_predictor_mse=1.0, k=3, k_aux=1, aux_coef=0.0,
        wide_k=12, wide_weight=0.125,
    )  # fmt: skip
    weights = {"w_enc": torch.randn(n, d), "w_dec": torch.randn(n, d)}
    weights |= {"b_enc": torch.zeros(n), "b_pre": torch.zeros(d)}
    model = MultiTopKAutoencoder(spec, load_kernels("reference"), weights)
    none = torch.tensor([], dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.encode_with_losses(torch.randn(tokens, d), none)[1].total.backward()
    assert counter.get_total_flops() == tokens * 18 * n * d
    multi = planned("autoencoder=multi_topk").autoencoder
    assert multi.flops_dense(d) == 18 * 64 * d
    assert multi.flops_sparse(d) == 2 * 64 * d + (8 * 16 + 6 * 4) * d


def test_flops_pay_for_two_reconstructions() -> None:
    keys = ["autoencoder=multi_topk", "train.tokens=0"]
    point = tiny(*keys, "train.flops=1e9")
    assert flops_per_token(point, 8) == 18 * 64 * 8
    sparse = tiny(*keys, "train.flops=1e9", "train.flops_convention=sparse")
    assert flops_per_token(sparse, 8) == 2 * 64 * 8 + (8 * 16 + 6 * 4) * 8
