"""Runs as our own W&B mirror writes them offline. Tests only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fabricate import write_record

ROOT = Path(__file__).parents[3]

# The mirror without its command line, which waits for idle cores. Once for each state: the files
# NAME.STATE are what runs have left by then.
_MIRROR = """
import argparse, pathlib, sys
from scaling.runs.store import SweepStore
from scaling.runs.wandb_mirror import SweepMirror
sweep = pathlib.Path(sys.argv[1])
options = argparse.Namespace(project="laws", entity=None, tag=[])
for state in sys.argv[2:]:
    for file in sweep.glob(f"*/*.{state}"):
        file.replace(file.with_suffix(""))
    mirror = SweepMirror(SweepStore(sweep), options)
    mirror.update()
    mirror.close()
"""


def write_run(sweep: Path, row: dict[str, Any], curve: Iterable[dict[str, Any]]) -> None:
    """A run's folder: its record, a plan with a title, and a line of metrics.jsonl per step."""
    run = write_record(sweep, row)
    (run / "plan.json").write_text(json.dumps({"title": "a title", "config": {}}))
    lines = (json.dumps(line) + "\n" for line in curve)
    (run / "metrics.jsonl").write_text("".join(lines))


def mirror(sweep: Path, *states: str) -> Path:
    """Mirror the sweep offline, once per state; returns the folder of W&B's files."""
    environment = {**os.environ, "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", _MIRROR, str(sweep), *(states or ("now",))]
    subprocess.run(command, check=True, timeout=120, env=environment, cwd=ROOT)
    return sweep / "wandb"
