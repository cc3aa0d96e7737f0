"""Logged rows of runs as one DataFrame."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import Cell, record, write_record

from analysis.errors import TableError
from analysis.records import load_curves, load_runs
from analysis.records.collected import write_rows as write_rows_as_table
from analysis.records.wandb_rows import history_row
from scaling.runs.store import RunFolder

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


def test_lines_of_no_step_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", [])
    steps = ["true", "-1", "Infinity", "NaN", "1e30", "1" + "0" * 30, '"2"']
    bad = "".join(f'{{"step": {step}, "{LOSS}": 9.0}}\n' for step in steps)
    write_rows(run, [{"tokens": 256, "step": 1, LOSS: 1.0}], rest=bad + "[" * 100_000 + "\n")
    frame = load_curves(tmp_path)
    assert frame["step"].tolist() == [1]
    assert frame[LOSS].tolist() == [1.0]


@pytest.mark.parametrize("step", [float("inf"), float("nan"), 10**30, -2, None])
def test_copied_rows_of_no_step_are_left_out(
    step: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_run(tmp_path, "a", [])
    rows = [history_row({"_step": 1, LOSS: 0.5}), history_row({"_step": step, LOSS: 9.0})]
    monkeypatch.setattr("analysis.records.folders._logged", lambda _: rows)
    assert load_curves(tmp_path)["step"].tolist() == [1]


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "a", [1])

    def denied(_: RunFolder) -> list:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "metrics", denied)
        with pytest.raises(
            TableError, match=r"a/metrics\.jsonl cannot be read \(Permission denied"
        ):
            load_curves(tmp_path)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(TableError, match=r"cannot be read \(no regular file\); make it readable"):
        load_curves(tmp_path)


@pytest.mark.parametrize("source", [None, 5, 1.5, b"runs", [None], [["x", 3]]])
@pytest.mark.parametrize("read", [load_runs, load_curves])
def test_what_is_no_source_is_told(
    read: Callable, source: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "x", "a", [1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TableError, match="is no source of runs; give the path of a sweep's folder"):
        read(source)


def test_names_that_are_not_utf8_are_spelled_out(tmp_path: Path) -> None:
    """Of a folder and within a record: tables, pages and W&B cannot hold them as they are."""
    for name, whole in ((b"\xff<b>", True), (b"planned\xe9", False)):
        run = make_run(tmp_path, "a", [1])
        if not whole:
            (run / "record.json").write_text("{")
        os.rename(run, os.fsencode(tmp_path) + b"/" + name)  # noqa: PTH104
    row = record(Cell(256, 8, 125_000), 0.4, run_id="plain")
    row["result"]["subject_model"] = "\udcff"
    row["run_id"] = "plain\ud800"
    write_record(tmp_path, row | {"run_id": "plain"})
    (tmp_path / "plain" / "record.json").write_text(json.dumps(row))
    frame = load_runs(tmp_path, allow=("rejected", "subject_model"))
    assert sorted(frame["run_id"]) == ["a", "plain\\ud800", "planned\\udce9"]
    assert "\\udcff" in set(frame["subject_model"])
    assert any(folder.endswith("/\\udcff<b>") for folder in frame["folder"])
    write_rows_as_table(tmp_path / "t.csv", frame.to_dict("records"))
    curves = load_curves(tmp_path)
    assert sorted(set(curves["run_id"])) == ["\\udcff<b>", "planned\\udce9"]
    assert load_curves(tmp_path, runs=["\\udcff<b>"])["step"].tolist() == [1]


def test_names_of_tables_and_offline_folders_are_spelled_out_too(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/w\xff"
    offline = Path(os.fsdecode(folder)) / "offline-run-1-a"
    offline.mkdir(parents=True)
    (offline / os.fsdecode(b"run-a\xe9.wandb")).touch()
    table = Path(os.fsdecode(folder)) / "t.csv"
    table.write_text("run_id,status\nb,planned\n")
    frame = load_runs([offline.parent, table], allow="rejected")
    assert frame["run_id"].tolist() == ["a\\udce9", "b"]
    assert [Path(name).name for name in frame["source"]] == ["w\\udcff", "t.csv"]
    assert all("/w\\udcff" in name for name in (*frame["source"], frame["folder"][0]))
    write_rows_as_table(tmp_path / "t.csv", frame.to_dict("records"))


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
