"""The run whose training curve is kept: tiny, planted, with AuxK at work."""

from __future__ import annotations

from pathlib import Path

import torch

from scaling.activations.build import open_source, prepare
from scaling.sweep.planner import make_plan
from scaling.train.build import build_engine
from tests.compose import tiny

GOLDEN = Path(__file__).with_name("planted_topk.txt")
Point = tuple[int, float, float]
"""Step, normalized MSE of the batch, AuxK loss."""


def golden_curve() -> list[Point]:
    config = tiny("train.lr=3e-3", "autoencoder.n_latents=256", "autoencoder.dead_after_tokens=512")
    spec = prepare(config.activations, Path("unused"), progress=lambda _: None)
    plan, source = make_plan(config, spec), open_source(spec)
    torch.set_num_threads(1)
    engine = build_engine(plan, source)
    points = []
    for step in range(plan.train.steps):
        batch = source.train_batch(seed=0, step=step, batch_tokens=256, shuffle_block=1)
        stats = engine.step(batch, plan.train.lr)
        points.append((step, float(stats.normalized_mse), float(stats.aux_loss)))
    return points
