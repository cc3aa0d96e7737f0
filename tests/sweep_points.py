"""The points of a sweep file, as `python launch.py -m sweeps=NAME` would compose them, in seconds.

Hydra's own parser reads the lists of `hydra.sweeper.params`; the config is composed once, and its
copies get each combination's values.
"""

from __future__ import annotations

import os
from itertools import product

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from scaling.config import RunConfig, register, to_run_configs
from tests.compose import ROOT


def sweep_points(name: str, *overrides: str) -> list[RunConfig]:
    """All points of sweeps/NAME.yaml, or of a list given as an override of its own."""
    config = _composed(f"sweeps={name}", *overrides)
    params = config.hydra.sweeper.params or {}  # none where a file has cells alone
    lists = {key: _values(key, str(words)) for key, words in params.items()}
    given = {word.split("=")[0] for word in overrides}
    lists = {key: values for key, values in lists.items() if key not in given}
    with open_dict(config):
        config.pop("hydra")
    points: list[RunConfig] = []
    for values in product(*lists.values()):
        at_point = config.copy()
        for key, value in zip(lists, values, strict=True):
            OmegaConf.update(at_point, key, value)
        points += to_run_configs(at_point)
    return points


def _composed(*overrides: str) -> DictConfig:
    register()
    os.environ["SCALING_ROOT"] = os.environ["SCALING_HYDRA_DIR"] = str(ROOT)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


def _values(key: str, words: str) -> list[object]:
    (override,) = OverridesParser.create().parse_overrides([f"{key}={words}"])
    if not override.is_sweep_override():
        return [override.value()]
    return list(override.sweep_iterator())
