"""Training finds an easy planted dictionary (benchmarks/planted_recovery.py has a hard one)."""

from __future__ import annotations

import pytest
import torch

from scaling.activations.planted import PlantedSource, planted_spec
from scaling.autoencoder_config import TopKConfig
from scaling.choices import LrRule
from scaling.config import PlantedConfig, RunConfig, TrainConfig
from scaling.launcher_config import LocalLauncherConfig
from scaling.sweep.planner import make_plan
from scaling.train.build import build_engine
from scaling.train.evaluate import evaluate


@pytest.mark.parametrize("seed", [0, 1])
def test_every_direction_of_an_easy_dictionary_is_found(seed: int) -> None:
    activations = PlantedConfig(
        max_tokens=1, eval_tokens=2048, d_model=32, n_true=48, k_true=2, frequency_exponent=0.0
    )
    config = RunConfig(
        launcher=LocalLauncherConfig(),
        autoencoder=TopKConfig(n_latents=96, k=2, dead_after_tokens=4_000),
        activations=activations,
        train=TrainConfig(
            tokens=200_000,
            batch_tokens=256,
            lr_rule=LrRule.step_limited,
            decay_fraction=0.2,
            seed=seed,
        ),
    )
    source = PlantedSource(planted_spec(activations))
    plan = make_plan(config, source.spec)
    torch.set_num_threads(1)
    engine = build_engine(plan, source)
    for step in range(plan.train.steps):
        batch = source.train_batch(seed=seed, step=step, batch_tokens=256, shuffle_block=1)
        engine.step(batch, plan.train.lr)
    cosines = (source.dictionary @ engine.weights()["w_dec"].T).max(dim=1).values
    score = evaluate(engine.scorer(), source.eval_batches(1024), source.calibration.mean_D, 96)
    untrained = (source.dictionary @ build_engine(plan, source).weights()["w_dec"].T).max(dim=1)
    assert float(untrained.values.mean()) < 0.7
    assert float(cosines.mean()) > 0.97
    assert score.normalized_mse < 0.1
