"""The demo: the sweep `demo`, its report, and where the time went. `make demo` runs it.

Every step is a command that a user could type; this module types them and keeps the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    options = _options()
    sweep_dir = options.runs_dir / "demo"
    # The demo needs no account: W&B writes its files offline unless told otherwise.
    environment = {"WANDB_MODE": "offline", **os.environ}
    folders = [f"runs_dir={options.runs_dir}", f"data_dir={options.data_dir}"]
    launch = [sys.executable, str(ROOT / "launch.py"), "-m", "sweeps=demo", *folders]
    returncode = subprocess.run(launch, env=environment).returncode
    if returncode:
        return returncode
    started_s = time.monotonic()
    report = [sys.executable, "-m", "analysis.report", str(sweep_dir)]
    returncode = subprocess.run(report, cwd=ROOT, env=environment).returncode
    _print_times(sweep_dir, options.install_s, fit_s=time.monotonic() - started_s)
    return returncode


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-dir", type=_absolute, default="runs")
    parser.add_argument("--data-dir", type=_absolute, default="data")
    parser.add_argument("--install-s", type=float, default=0.0, help="spent before, to be printed")
    return parser.parse_args()


def _absolute(folder: str) -> Path:
    return Path(folder).resolve()


def _print_times(sweep_dir: Path, install_s: float, fit_s: float) -> None:
    lines = (sweep_dir / "launches.jsonl").read_text().splitlines()
    launch = json.loads(lines[-1])
    trained = launch["n_runs"] - launch["n_skipped"]
    print(
        f"\nseconds: install {install_s:.0f}, harvest {launch['prepare_s']:.0f}, "
        f"training {launch['train_s']:.0f} ({trained} of {launch['n_runs']} runs trained now), "
        f"fit and report {fit_s:.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
