"""Train one run or a sweep: `python launch.py KEY=VALUE ...`, `python launch.py -m sweeps=NAME`.

Phase 1: Hydra composes every point, and nothing else. Phase 2, after Hydra has returned: the
points are validated, planned and executed in plain Python, so that an error is an exit code.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import hydra
from omegaconf import DictConfig

from scaling.config import RunConfig, register, to_run_config
from scaling.errors import UserError

ROOT = Path(__file__).resolve().parent


def compose_points() -> list[RunConfig]:
    """Every point of the command line as a typed config. Hydra itself exits on an unknown key.

    Raises:
        UserError: a value is missing or cannot be resolved.
    """
    register()
    composed: list[DictConfig] = []
    collect = hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
    with tempfile.TemporaryDirectory() as hydra_dir:
        os.environ["SCALING_ROOT"] = str(ROOT)  # where conf/ finds sweeps/, whatever the cwd
        os.environ["SCALING_HYDRA_DIR"] = hydra_dir  # Hydra's own notes: plan.json has it all
        collect(composed.append)()
    return [to_run_config(config) for config in composed]


def main() -> int:
    try:
        points = compose_points()
        if not points:  # --help, --cfg: Hydra has answered already
            return 0
        from scaling.sweep.launch import launch  # after Hydra: torch is slow to import

        return launch(points)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
