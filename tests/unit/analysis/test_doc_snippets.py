"""The Python of docs/judgement.md runs as it is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import Cell, record, write_record

ROOT = Path(__file__).parents[3]


def _run(page: str, number: int) -> dict[str, Any]:
    """The names that a ```python block of the page leaves behind."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(blocks[number], f"docs/{page}", "exec"), names)
    return names


def test_the_page_judges_the_papers_points(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    verdicts = _run("judgement.md", 0)["verdicts"]
    assert capsys.readouterr().out.splitlines() == list(verdicts.lines())
    assert len(verdicts.found) == 2


def test_the_page_selects_converged_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs of constant rate: the curve of one still falls, the others have stopped."""
    monkeypatch.chdir(tmp_path)
    for n in (256, 512, 1024, 2048):
        row = record(Cell(n, 16, 1_000_000), 0.2 + 10 / n, decay_fraction=0.0)
        folder = write_record(tmp_path / "runs" / "to_convergence", row)
        slope = 0.5 if n == 2048 else 0.0
        lines = [
            {
                **{"tokens": tokens, "step": tokens // 256, "train/lr": 1e-3},
                "eval/normalized_mse_ema": 0.3 * (tokens / 1e6) ** -slope,
            }
            for tokens in np.geomspace(1e5, 1e6, 12).astype(int).tolist()
        ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    converged = _run("judgement.md", 1)["converged"]
    assert converged.points["n"].tolist() == [256, 512, 1024]
    assert len(converged.dropped) == 1
