"""Planted data: the ground truth is the truth, and every vector is a pure function of its names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scaling.activations.build import open_source
from scaling.activations.planted import PlantedSource, planted_spec
from scaling.activations.source import SourceSpec, epochs
from scaling.config import PlantedConfig
from scaling.errors import UserError


def config(**changes: float) -> PlantedConfig:
    defaults = {"d_model": 16, "n_true": 40, "k_true": 4, "noise": 0.1, "eval_tokens": 300}
    return PlantedConfig(**{"max_tokens": 1000, **defaults, **changes})  # pyright: ignore


@pytest.fixture
def source() -> PlantedSource:
    return PlantedSource(planted_spec(config()))


def test_true_codes_reproduce_vectors_minus_noise(source: PlantedSource) -> None:
    truth = source.train_truth(seed=0, step=3, batch_tokens=500)
    codes = torch.zeros(500, 40).scatter(1, truth.ids_BK, truth.magnitudes_BK)
    torch.testing.assert_close(codes @ source.dictionary, truth.x_BD - truth.noise_BD)
    assert not torch.allclose(codes @ source.dictionary, truth.x_BD, atol=1e-3)


def test_codes_are_sparse_positive_and_distinct(source: PlantedSource) -> None:
    truth = source.eval_truth()
    assert (truth.magnitudes_BK > 0).all()
    assert all(len(set(row.tolist())) == 4 for row in truth.ids_BK)
    torch.testing.assert_close(source.dictionary.norm(dim=1), torch.ones(40))


def test_noise_is_the_stated_share_of_the_signal() -> None:
    source = PlantedSource(planted_spec(config(noise=0.3)))
    truth = source.train_truth(seed=0, step=0, batch_tokens=20_000)
    signal = (truth.x_BD - truth.noise_BD).square().sum(1).mean().sqrt()
    assert truth.noise_BD.square().sum(1).mean().sqrt() / signal == pytest.approx(0.3, rel=0.02)


def test_frequencies_follow_the_power_law() -> None:
    source = PlantedSource(planted_spec(config(k_true=1, frequency_exponent=1.0)))
    ids = source.train_truth(seed=0, step=0, batch_tokens=200_000).ids_BK.flatten()
    counts = np.bincount(ids.numpy(), minlength=40)
    weights = 1 / np.arange(1, 41)
    expected = 200_000 * weights / weights.sum()
    assert np.abs((counts - expected) / np.sqrt(expected)).max() < 4.5  # standard deviations


def test_batches_are_pure_functions_of_seed_and_step(source: PlantedSource) -> None:
    def batch(from_source: PlantedSource, seed: int, step: int) -> torch.Tensor:
        return from_source.train_batch(seed=seed, step=step, batch_tokens=64, shuffle_block=1)

    first = batch(source, 1, 7)
    reopened = open_source(SourceSpec.from_json(source.spec.to_json()))
    assert isinstance(reopened, PlantedSource)
    assert torch.equal(first, batch(reopened, 1, 7))
    assert not torch.equal(first, batch(source, 1, 8))
    assert not torch.equal(first, batch(source, 2, 7))


def test_held_out_set_is_the_same_for_every_batch_size(source: PlantedSource) -> None:
    small = torch.cat(list(source.eval_batches(64)))
    large = torch.cat(list(source.eval_batches(4096)))
    assert small.shape == (300, 16)
    assert torch.equal(small, large)
    assert not torch.equal(small, source.sample(300))


def test_longer_sample_begins_with_the_shorter(source: PlantedSource) -> None:
    assert torch.equal(source.sample(5000)[:100], source.sample(100))


def test_calibration_mean_scores_one(source: PlantedSource) -> None:
    calibration = source.calibration
    sample = source.sample(16_384)
    mse = (sample - calibration.mean_D).square().mean().item()
    assert mse == pytest.approx(calibration.mean_predictor_mse, rel=1e-5)
    assert calibration.mean_D.norm() > 0.1  # non-negative combinations are not centered


def test_identity_depends_on_the_parameters_only() -> None:
    spec = planted_spec(config())
    assert spec.content_hash == planted_spec(config(max_tokens=5)).content_hash
    assert spec.content_hash != planted_spec(config(noise=0.2)).content_hash
    more = planted_spec(config(eval_tokens=301))
    assert (more.content_hash, more.eval_hash) != (spec.content_hash, spec.eval_hash)
    assert more.content_hash == spec.content_hash
    assert SourceSpec.from_json(spec.to_json()) == spec


def test_unlimited_data_has_no_epochs() -> None:
    assert epochs(planted_spec(config()), 10**9) is None


@pytest.mark.parametrize("changes", [{"k_true": 41}, {"k_true": 0}, {"noise": -0.1}])
def test_impossible_parameters_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match="activations"):
        planted_spec(config(**changes))


def test_rms_norm_is_near_one() -> None:
    source = PlantedSource(planted_spec(config(d_model=256, noise=0.0)))
    assert math.sqrt(source.sample(4096).square().sum(1).mean()) == pytest.approx(1, abs=0.1)
