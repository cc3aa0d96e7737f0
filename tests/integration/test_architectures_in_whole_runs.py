"""Architectures with parameters of their own, through a whole run: stopped, resumed, reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scaling.autoencoder.registry import ARCHITECTURES
from scaling.runs.record import Status
from scaling.train.shard_files import read_tensors
from tests.integration.test_resume import attempt, planned

SETTINGS = {
    "gated": [],
    "jumprelu": ["autoencoder.bandwidth=0.1", "autoencoder.initial_threshold=0.05"],
}
N = 64


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stopped_run_resumes_to_the_bit_with_its_own_parameters(
    tmp_path: Path, name: str
) -> None:
    overrides = [f"autoencoder={name}", *SETTINGS[name]]
    plan, straight = planned(tmp_path / "straight", *overrides)
    _, broken = planned(tmp_path / "broken", *overrides)
    expected = attempt(straight)
    assert attempt(broken, stop_after_rows=8).status is Status.preempted
    found = attempt(broken)
    assert found.cost["resumed_at_step"] > 0
    assert found.result == expected.result
    own, d_model = ARCHITECTURES[name].MORE_PER_LATENT, plan.source.d_model
    assert found.result["params"] == 2 * N * d_model + N + d_model + len(own) * N
    result, ae = found.result, plan.autoencoder
    assert result["flops_sparse"] == result["tokens"] * ae.flops_sparse(d_model, result["l0"])
    assert result["l0_ema"] != result["l0"]  # of weights of an earlier time
    weights = [read_tensors(folder.path / "weights")[1] for folder in (straight, broken)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    for key in own:  # trained, and averaged as every other
        assert weights[0][key].std() > 0
        assert not torch.equal(weights[0][f"{key}.ema"], weights[0][key])
