"""The command line, as a user types it: sweeps that complete, add up, skip, refuse and report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling.runs.record import Record, problems_of
from tests.compose import TINY

ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240
    )


def launch(cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run(str(ROOT / "launch.py"), *overrides, cwd=cwd)


def records(cwd: Path, sweep: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in cwd.glob(f"runs/{sweep}/*/record.json")]


def test_a_sweep_completes_skips_grows_and_reports(tmp_path: Path) -> None:
    planned = launch(tmp_path, "-m", "sweeps=smoke", "dry_run=true")
    assert planned.returncode == 0
    assert "4 runs" in planned.stdout
    assert not (tmp_path / "runs").exists()

    first = launch(tmp_path, "-m", "sweeps=smoke")
    assert first.returncode == 0, first.stderr
    done = records(tmp_path, "smoke")
    assert [record["status"] for record in done] == ["done"] * 4
    assert all(problems_of(Record.from_json(record)) == [] for record in done)
    assert all(record["result"]["l0"] == record["result"]["k"] for record in done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]  # no litter beside it

    grown = launch(tmp_path, "-m", "sweeps=smoke", "autoencoder.k=2,4,8")
    assert grown.returncode == 0
    kept = {record["run_id"]: record for record in records(tmp_path, "smoke")}
    assert len(kept) == 6
    assert all(kept[record["run_id"]] == record for record in done)

    status = run("-m", "scaling.status", "runs/smoke", cwd=tmp_path)
    assert status.returncode == 0
    assert "6 done" in status.stdout

    report = run("-m", "analysis.report", "runs/smoke", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "runs/smoke/report/index.html").read_text()
    assert "<html" in page
    assert not re.search(r"(src|href)=.?https?:", page)  # self-contained


def test_one_diverging_run_does_not_stop_the_others(tmp_path: Path) -> None:
    arguments = [*TINY, "sweep_name=mixed", "train.lr=1e-3,1e18"]
    assert launch(tmp_path, "-m", *arguments).returncode == 0
    statuses = sorted(record["status"] for record in records(tmp_path, "mixed"))
    assert statuses == ["diverged", "done"]
    again = launch(tmp_path, "-m", *arguments)
    assert again.returncode == 0
    assert "diverged" in again.stdout


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["autoencoder.k=65"], "autoencoder.k=65"),
        (["autoencoder.width=3"], "autoencoder.width"),
        (["train.tokens=many"], "train.tokens"),
        (["activations=hf", "activations.model=/no/model", "activations.text=text.txt",
          "activations.layer=1"], "activations.model"),
        (["activations=store", "activations.path=/no/store"], "activations.path"),
        (["autoencoder.n_latents=500_000_000"], "autoencoder.n_latents"),
        (["sweep.max_hours=0.000001"], "sweep.max_hours"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)  # fmt: skip
def test_bad_input_is_one_paragraph_and_starts_nothing(
    tmp_path: Path, overrides: list[str], key: str
) -> None:
    (tmp_path / "text.txt").write_text("one document")
    base = [item for item in TINY if not (overrides[0] in ("activations=hf", "activations=store")
                                          and item.startswith("activations"))]  # fmt: skip
    answer = launch(tmp_path, *base, *overrides)
    assert answer.returncode == 2
    assert key in answer.stderr
    assert "Traceback" not in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert list(tmp_path.glob("runs/*/*/record.json")) == []


def test_one_bad_point_stops_the_sweep_before_any_run(tmp_path: Path) -> None:
    answer = launch(tmp_path, "-m", *TINY, "autoencoder.k=4,8,100")
    assert answer.returncode == 2
    assert "autoencoder.k=100" in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_help_and_cfg_are_hydras(tmp_path: Path) -> None:
    assert launch(tmp_path, "--help").returncode == 0
    shown = launch(tmp_path, "--cfg", "job", "-p", "train")
    assert shown.returncode == 0
    assert "batch_tokens: 256" in shown.stdout


def test_profile_leaves_a_trace(tmp_path: Path) -> None:
    assert launch(tmp_path, *TINY, "debug.profile=true").returncode == 0
    (trace,) = tmp_path.glob("runs/default/*/profile.json")
    assert "traceEvents" in trace.read_text()
