"""A sweep file written by the planner is a sweep that the launcher runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analysis.planning.sweep_file import Cell, sweep_text, write_sweep
from tests.compose import ROOT, composed_points

CELLS = [Cell(128, 4, 10_240, 0), Cell(128, 4, 10_240, 1), Cell(256, 8, 20_480, 0)]


def _written(tmp_path: Path, like: str | None) -> None:
    (tmp_path / "sweeps").mkdir()
    words = {"question": "q", "cost": "1 FLOP", "feeds": "f"}
    text = sweep_text(CELLS, name=None if like else "next", like=like, **words)
    write_sweep(tmp_path / "sweeps" / "next.yaml", text)


@pytest.mark.parametrize(("like", "name"), [(None, "next"), ("smoke", "smoke"), ("demo", "demo")])
def test_its_cells_become_points_of_the_recipe(tmp_path: Path, like: str | None, name: str) -> None:
    _written(tmp_path, like)
    paths = f"hydra.searchpath=[file://{ROOT},file://{tmp_path}]"
    points = composed_points(paths, "sweeps=next")
    found = [
        Cell(p.autoencoder.n_latents, p.autoencoder.k, p.train.tokens, p.train.seed) for p in points
    ]
    assert found == CELLS
    assert {point.sweep_name for point in points} == {name}
    recipe = composed_points(f"sweeps={like}", *_ONE)[0] if like else composed_points(*_ONE)[0]
    assert {str(point.activations) for point in points} == {str(recipe.activations)}
    windows = {vars(point.autoencoder)["dead_after_tokens"] for point in points}
    assert windows == {vars(recipe.autoencoder)["dead_after_tokens"]}


_ONE = ["autoencoder.n_latents=256", "autoencoder.k=4", "train.tokens=1000"]


def test_the_launcher_plans_its_cells(tmp_path: Path) -> None:
    """Through launch.py, where the lists of the sweep it is like must not multiply the cells."""
    _written(tmp_path, "smoke")
    command = [str(ROOT / "launch.py"), "-m", "--config-dir", str(tmp_path), "sweeps=next"]
    planned = subprocess.run(
        [sys.executable, *command, "dry_run=true"],
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
