"""What a plan says of the start is what an engine starts with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scaling.activations.build import open_source, prepare
from scaling.autoencoder.init import geometric_median
from scaling.budget import INIT_SAMPLE_TOKENS
from scaling.sweep.planner import make_plan
from scaling.train.build import build_engine
from tests.compose import tiny

SHORT = ["activations.max_tokens=4_096", "engine=torch", "kernels=torch"]


def start(*overrides: str) -> tuple[dict[str, Tensor], Tensor]:
    """Initial weights, and the sample that b_pre begins from."""
    config = tiny(*SHORT, *(f"autoencoder.{override}" for override in overrides))
    plan = make_plan(config, prepare(config.activations, Path(), progress=lambda _: None))
    source = open_source(plan.source)
    return build_engine(plan, source).weights(), source.sample(INIT_SAMPLE_TOKENS)


def test_the_encoder_is_tied_or_its_own_and_scaled_or_not() -> None:
    tied, _ = start("scale_encoder=false")
    assert tied["w_enc"].equal(tied["w_dec"])
    scaled, _ = start()
    factors = scaled["w_enc"] / scaled["w_dec"]
    assert abs(float(factors.mean()) - 1) > 0.1
    torch.testing.assert_close(factors, factors.mean().expand_as(factors))
    own, _ = start("scale_encoder=false", "encoder_init=independent")
    assert own["w_dec"].equal(tied["w_dec"])
    assert float((own["w_enc"] * own["w_dec"]).sum(1).abs().mean()) < 0.5
    torch.testing.assert_close(own["w_enc"].norm(dim=1), torch.ones(64))


def test_b_pre_begins_where_it_is_said_to() -> None:
    zero, sample = start("b_pre_init=zero")
    mean, _ = start("b_pre_init=mean")
    median, _ = start()
    assert not zero["b_pre"].any()
    torch.testing.assert_close(mean["b_pre"], sample.mean(dim=0))
    assert median["b_pre"].equal(geometric_median(sample))
    assert not torch.allclose(median["b_pre"], mean["b_pre"])
