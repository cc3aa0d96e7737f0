"""Variants of TopK, and what is done for dead latents, in whole runs on planted data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.runs.record import RunOutcome, Status
from scaling.runs.store import RunFolder
from scaling.train.shard_files import read_tensors
from tests.integration.test_resume import attempt, comparable, planned

SOON_DEAD = [
    "autoencoder.n_latents=256",
    "autoencoder.k=2",
    "autoencoder.dead_after_tokens=256",  # one batch
    "logger.every_tokens=256",
]
RESAMPLED = ["autoencoder.dead_treatment=resample", "autoencoder.resample_every_tokens=2_560"]
GHOSTS = ["autoencoder.dead_treatment=ghost_grads"]


def trained(tmp_path: Path, *overrides: str) -> tuple[RunFolder, dict[str, Any]]:
    _, folder = planned(tmp_path / "run", *overrides)
    outcome = attempt(folder)
    assert outcome.status is Status.done, outcome.error
    return folder, outcome.result


@pytest.mark.parametrize("name", ["multi_topk", "matryoshka", "batch_topk"])
def test_a_variant_learns_and_keeps_its_sparsity(tmp_path: Path, name: str) -> None:
    exact = name != "batch_topk"
    # A threshold follows the activations: after 40 steps they still shrink, and it is behind.
    length = f"train.tokens={10_240 if exact else 102_400}"
    folder, result = trained(tmp_path, f"autoencoder={name}", "train.lr=3e-3", length)
    first, *_, last = (row["train/normalized_mse"] for row in folder.metrics())
    assert last < 0.8 * first
    assert result["autoencoder"] == name
    assert result["k"] == 4
    assert result["l0"] == pytest.approx(4, rel=1e-6 if exact else 0.05)
    assert exact or result["l0"] != 4
    assert result["flops_sparse"] > 0


def test_a_threshold_outlives_its_training(tmp_path: Path) -> None:
    folder, _ = trained(tmp_path, "autoencoder=batch_topk")
    weights = read_tensors(folder.path / "weights")[1]
    assert weights["threshold"] > 0
    assert weights["threshold.ema"].equal(weights["threshold"])


@pytest.mark.parametrize(
    "overrides",
    [["autoencoder=batch_topk"], [*SOON_DEAD, *RESAMPLED], [*SOON_DEAD, *GHOSTS]],
    ids=["batch_topk", "resample", "ghost_grads"],
)
def test_stopped_and_resumed_it_ends_with_the_same_bits(
    tmp_path: Path, overrides: list[str]
) -> None:
    straight, expected = trained(tmp_path, *overrides)
    _, broken = planned(tmp_path / "broken", *overrides)
    outcomes: list[RunOutcome] = [attempt(broken, stop_after_rows=rows) for rows in (5, 8)]
    assert {outcome.status for outcome in outcomes} == {Status.preempted}
    assert attempt(broken).result == expected
    assert comparable(broken) == comparable(straight)
    tensors = read_tensors(straight.path / "weights")[1]
    for name, tensor in read_tensors(broken.path / "weights")[1].items():
        assert tensor.equal(tensors[name]), name


def test_resampled_latents_are_not_dead_until_they_are_silent_again(tmp_path: Path) -> None:
    """Due after 10 and 20 of 40 steps; a row has what was dead before its step."""
    folder, result = trained(tmp_path, *SOON_DEAD, *RESAMPLED)
    dead = {row["step"]: row["train/dead_fraction"] for row in folder.metrics()}
    assert dead[10] > 0.1
    assert dead[11] == dead[21] == 0
    assert dead[31] > 0.1
    assert result["dead_treatment"] == "resample"
    assert result["dead_fraction"] > 0.1


def test_ghost_gradients_change_what_is_learned(tmp_path: Path) -> None:
    ghosts, _ = trained(tmp_path / "a", *SOON_DEAD, *GHOSTS)
    none, _ = trained(tmp_path / "b", *SOON_DEAD, "autoencoder.dead_treatment=none")
    rows, without = list(ghosts.metrics()), list(none.metrics())
    assert rows[-1]["train/normalized_mse"] != without[-1]["train/normalized_mse"]
    assert rows[-1]["train/aux_loss"] > 0 == without[-1]["train/aux_loss"]
    assert rows[5]["train/loss"] == pytest.approx(2 * rows[5]["train/normalized_mse"], rel=1e-5)
    assert torch.isfinite(read_tensors(ghosts.path / "weights")[1]["w_enc"]).all()
