"""Logged rows of runs as one DataFrame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import Cell, record, write_record

from analysis.errors import TableError
from analysis.records import load_curves

LOSS = "train/normalized_mse"


def write_rows(run: Path, rows: list[dict[str, Any]], rest: str = "") -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + rest)


def make_run(sweep: Path, run_id: str, steps: list[int], loss: float = 1.0) -> Path:
    run = write_record(sweep, record(Cell(256, 4, 125_000), 0.4, run_id=run_id))
    write_rows(run, [{"tokens": 256 * s, "step": s, LOSS: loss / s} for s in steps])
    return run


def test_a_row_per_logged_step(tmp_path: Path) -> None:
    make_run(tmp_path, "b", [1, 2, 3])
    make_run(tmp_path, "a", [2, 4], loss=3.0)
    make_run(tmp_path, "silent", [])
    frame = load_curves(tmp_path)
    assert [*frame] == ["run_id", "step", "tokens", LOSS]
    assert frame["run_id"].tolist() == ["a", "a", "b", "b", "b"]
    assert frame["step"].tolist() == [2, 4, 1, 2, 3]
    assert (frame["step"].dtype, frame["tokens"].dtype) == (np.int64, np.float64)
    assert frame["tokens"].tolist() == [512, 1024, 256, 512, 768]
    assert frame[LOSS].tolist() == [1.5, 0.75, 1.0, 0.5, 1 / 3]


def test_of_a_step_that_was_logged_again_the_last_value_stands(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", [])
    rows = [
        {"tokens": 256, "step": 1, LOSS: 1.0},
        {"tokens": 512, "step": 2, LOSS: 0.9},
        {"tokens": 768, "step": 3, LOSS: 0.8},
        {"tokens": 512, "step": 2, LOSS: 0.7},  # resumed at step 1
        {"tokens": 512, "step": 2, "eval/l0": 4.0},  # a row of its own for the same step
        {"tokens": 768, "step": 3, LOSS: None},
    ]
    write_rows(run, rows)
    frame = load_curves(tmp_path)
    assert frame["step"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(frame[LOSS], [1.0, 0.7, np.nan])
    np.testing.assert_array_equal(frame["eval/l0"], [np.nan, 4.0, np.nan])


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", [])
    write_rows(run, [{"tokens": 256, "step": 1, LOSS: 1.0}], rest='{"tokens": 512, "step": 2, "tra')
    assert load_curves(tmp_path)["step"].tolist() == [1]


def test_runs_and_columns_can_be_chosen(tmp_path: Path) -> None:
    for run_id in ("a", "b", "c"):
        make_run(tmp_path, run_id, [1, 2])
    write_rows(tmp_path / "b", [{"tokens": 256, "step": 1, LOSS: 1.0, "eval/l0": 4.0}])
    frame = load_curves(tmp_path, runs=["c", "b"], columns=["eval/l0"])
    assert [*frame] == ["run_id", "step", "tokens", "eval/l0"]
    assert frame["run_id"].tolist() == ["b", "c", "c"]
    with pytest.raises(TableError, match=r"no run x has been logged .*there are: a"):
        load_curves(tmp_path, runs=["a", "x"])
    with pytest.raises(TableError, match=r"no column eval/l1 .*there are: eval/l0, step, tokens"):
        load_curves(tmp_path, columns=["eval/l1"])


def test_a_run_of_two_sweeps_is_one_curve(tmp_path: Path) -> None:
    make_run(tmp_path / "one", "a", [1, 2])
    make_run(tmp_path / "two", "a", [1, 2], loss=2.0)
    frame = load_curves([tmp_path / "one", tmp_path / "two"])
    assert frame[LOSS].tolist() == [1.0, 0.5]


def test_sources_without_curves(tmp_path: Path) -> None:
    make_run(tmp_path, "a", [])
    with pytest.raises(TableError, match="have logged nothing yet"):
        load_curves(tmp_path)
    table = tmp_path / "runs.csv"
    table.write_text("run_id\na\n")
    with pytest.raises(TableError, match="a table of records, which has no curves"):
        load_curves(table)
