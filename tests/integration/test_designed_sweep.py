"""A sweep file written by the planner is a sweep that the launcher runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analysis.planning.sweep_file import Cell, sweep_text, write_sweep

ROOT = Path(__file__).parents[2]
CELLS = [Cell(128, 4, 10_240, 0), Cell(128, 4, 10_240, 1), Cell(256, 8, 20_480, 0)]


@pytest.mark.parametrize("like", [None, "smoke"])
def test_the_launcher_plans_its_cells(tmp_path: Path, like: str | None) -> None:
    (tmp_path / "sweeps").mkdir()
    words = {"question": "q", "cost": "1 FLOP", "feeds": "f"}
    name = None if like else "next"
    text = sweep_text(CELLS, name=name, like=like, **words)
    write_sweep(tmp_path / "sweeps" / "next.yaml", text)
    planted = ["activations=planted", "activations.eval_tokens=512"]
    command = [str(ROOT / "launch.py"), "-m", "--config-dir", str(tmp_path), "sweeps=next"]
    planned = subprocess.run(
        [sys.executable, *command, "dry_run=true", *planted],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert planned.returncode == 0, planned.stderr
    assert "3 runs" in planned.stdout
    rows = [line.split() for line in planned.stdout.splitlines() if "," in line]
    shown = sorted((row[1], row[2], row[3]) for row in rows if len(row) == 9)
    assert shown == [("128", "4", "10,240")] * 2 + [("256", "8", "20,480")]
    assert not (tmp_path / "runs").exists()
