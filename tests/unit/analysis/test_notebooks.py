"""The notebooks run from top to bottom on the records beside them, and keep their outputs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from fabricate import Cell, record
from mirrored import ROOT, mirror, write_run

NOTEBOOKS = ROOT / "analysis" / "notebooks"
ON_COMMITTED_RECORDS = sorted(
    path.stem for path in NOTEBOOKS.glob("*.ipynb") if path.stem != "read_from_wandb"
)

# In a process of its own: kernels warn, and tests here take warnings for failures.
_EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
where = {"metadata": {"path": sys.argv[2]}}
NotebookClient(notebook, timeout=240, resources=where).execute()
nbformat.write(notebook, sys.argv[3])
"""


def execute(notebook: Path, output: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _EXECUTE, str(notebook), str(NOTEBOOKS), str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


def texts(notebook: Path) -> list[str]:
    """What each code cell printed and showed, without pictures."""
    cells = nbformat.read(notebook, as_version=4).cells
    shown = []
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        printed = [output.get("text", "") for output in cell.outputs]
        tables = [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
        shown.append("".join([*printed, *tables]))
    return shown


@pytest.mark.parametrize("name", ON_COMMITTED_RECORDS)
def test_runs_and_says_what_it_said(name: str, tmp_path: Path) -> None:
    done = execute(NOTEBOOKS / f"{name}.ipynb", tmp_path / "again.ipynb")
    assert done.returncode == 0, done.stderr[-2000:]
    assert texts(tmp_path / "again.ipynb") == texts(NOTEBOOKS / f"{name}.ipynb")


def test_reads_what_our_mirror_wrote(tmp_path: Path) -> None:
    for k, loss in ((4, 0.4), (8, 0.3)):
        row = record(Cell(256, k, 125_000), loss)
        curve = [
            {"tokens": 256 * s, "step": s, "train/normalized_mse": 1 / s, "train/dead_fraction": 0}
            for s in range(1, 6)
        ]
        curve[-1]["tokens"] = row["result"]["tokens"]
        write_run(tmp_path / "sweep", row, curve)
    output = tmp_path / "again.ipynb"
    files = mirror(tmp_path / "sweep")
    done = execute(NOTEBOOKS / "read_from_wandb.ipynb", output, SAE_WANDB=str(files))
    assert done.returncode == 0, done.stderr[-2000:]
    runs, sizes, _ = texts(output)
    assert "0.3" in runs
    assert sizes.count("    5\n") == 2  # rows of each run


def test_outputs_are_kept() -> None:
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert any("image/png" in str(cell.get("outputs")) for cell in cells), path
        for folder in (tempfile.gettempdir(), str(Path.home()), str(ROOT)):
            assert folder not in path.read_text(), path  # outputs are the same wherever they run


def test_an_error_in_a_cell_is_seen(tmp_path: Path) -> None:
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(broken, tmp_path / "broken.ipynb")
    done = execute(tmp_path / "broken.ipynb", tmp_path / "again.ipynb")
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr
