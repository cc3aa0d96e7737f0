"""What `python -m analysis.quality` says where there is nothing to show."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_quality import plant_quality

from analysis.quality.command import quality_command
from analysis.records.load import load_runs


def test_runs_that_cannot_be_used_are_not_called_unevaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "runs.csv"
    lines = [f"r{n},{n},8,0,0.5,done,0.4" for n in ("0", "-4")]
    table.write_text(
        "\n".join(["run_id,n_latents,k,seed,normalized_mse,status,downstream_kl", *lines])
    )
    with pytest.raises(SystemExit):
        _exit(quality_command([str(table)]))
    said = capsys.readouterr().err
    assert "none of the 2 runs" in said
    assert "is evaluated" not in said


def test_runs_without_evaluation_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant_quality(tmp_path, {}, sizes=(512,), seeds=(0,))
    assert "" in set(load_runs(tmp_path)["excluded"])
    with pytest.raises(SystemExit):
        _exit(quality_command([str(tmp_path)]))
    assert "is evaluated: measure them" in capsys.readouterr().err


def _exit(code: object) -> None:
    raise SystemExit(code)
