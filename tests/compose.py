"""Configs as a command line composes them, for tests that need one."""

from __future__ import annotations

import os
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from scaling.autoencoder_config import ARCHITECTURES, PenalizedConfig, TopKConfig
from scaling.config import RunConfig, register, to_run_configs

ROOT = Path(__file__).parents[1]
TINY = [
    "activations=planted",
    "activations.eval_tokens=512",
    "autoencoder.n_latents=64",
    "autoencoder.k=4",
    "autoencoder.dead_after_tokens=2048",
    "train.tokens=10_240",
]
"""A planted run of 40 steps: a fraction of a second."""
PENALTY = "autoencoder.penalty=0.02"
"""What stands in the place of k where sparsity is an outcome."""


def composed(*overrides: str) -> RunConfig:
    """The config of `python launch.py OVERRIDES`."""
    (point,) = composed_points(*overrides)
    return point


def composed_points(*overrides: str) -> list[RunConfig]:
    """The same, where `sweep.points` may make several of it."""
    register()
    os.environ["SCALING_ROOT"] = str(ROOT)
    os.environ["SCALING_HYDRA_DIR"] = str(ROOT)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    with open_dict(config):
        config.pop("hydra")
    return to_run_configs(config)


def tiny(*overrides: str) -> RunConfig:
    """TINY with overrides; for an architecture without k, with a penalty in its place."""
    chosen = [o.removeprefix("autoencoder=") for o in overrides if o.startswith("autoencoder=")]
    penalized = any(issubclass(ARCHITECTURES.get(c, TopKConfig), PenalizedConfig) for c in chosen)
    common = [PENALTY if penalized and key.startswith("autoencoder.k=") else key for key in TINY]
    return composed(*common, *overrides)
