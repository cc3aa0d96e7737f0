"""Records as a CSV table: written, added to, and read back equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fabricate import Cell, demo_cells, fabricate_sweep, record, write_record

from analysis.collect import collect_command
from analysis.errors import TableError
from analysis.records.collected import merged, read_rows, write_rows
from analysis.records.load import load_runs
from analysis.records.rows import Row

CELLS = demo_cells((256, 512))
ODD = Cell(2048, 4, 250_000)
DEEP = "[" * 100_000
FAILURE = {"type": "RuntimeError", "message": 'out of "memory",\nsaid it', "traceback": None}


def make_sweep(folder: Path) -> Path:
    """Runs done, failed, planned, unreadable; with nulls, an evaluation, digits for a name."""
    fabricate_sweep(folder, CELLS)
    run = write_record(
        folder, record(ODD, 0.4, run_id="123456789012", subject_model="SmolLM2-135M")
    )
    (run / "evaluation.json").write_text(
        json.dumps(
            {
                "kl": 0.25,
                "tasks": 61,
                "metrics": {"kl": {"measured_as": "1234567890e1"}},  # which JSON reads as a number
            }
        )
    )
    failed = record(Cell(2048, 8, 250_000), 0.4, error=FAILURE, status="failed")
    write_record(folder, failed | {"cost": {"host": "a, b"}, "result": {}})
    planned = record(Cell(2048, 16, 250_000), 0.4, status="planned")
    write_record(folder, planned | {"cost": {}, "result": {}})
    nulls = {"dead_fraction": None, "commit": None, "commit_dirty": None, "cpu": None}
    write_record(folder, record(Cell(2048, 32, 250_000), 0.3, **nulls))
    (write_record(folder, record(ODD, 0.4, run_id="cut")) / "record.json").write_text("{")
    return folder


def test_a_table_reads_back_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, table = make_sweep(tmp_path / "sweep"), tmp_path / "runs.csv"
    assert collect_command([str(sweep), "--csv", str(table)]) == 0
    n = len(CELLS) + 5
    assert f"{n} runs ({n - 3} done, 1 failed, 1 planned, 1 unreadable)" in capsys.readouterr().out
    from_folders = load_runs(sweep).sort_values("run_id", ignore_index=True)
    from_table = load_runs(table)
    pd.testing.assert_frame_equal(from_table, from_folders, check_exact=True)
    # Equal in what pandas does not compare: the kinds of single values.
    for name in from_table:
        kinds = [{type(value) for value in frame[name]} for frame in (from_table, from_folders)]
        assert kinds[0] == kinds[1], name
    assert isinstance(from_table["versions"].iloc[0], dict)
    assert from_table["mesh"].iloc[0] == [1, 1]
    by_id = from_table.set_index("run_id")
    assert (by_id.loc["123456789012", "kl"], by_id.loc["123456789012", "tasks"]) == (0.25, 61)
    assert set(from_table["source"]) == {str(sweep)}


def test_a_table_of_a_table_is_the_same_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    sweep = make_sweep(tmp_path / "sweep")
    assert collect_command([str(sweep), "--csv", str(first)]) == 0
    assert collect_command([str(first), "--csv", str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
    runs = [line["run_id"] for line in read_rows(first)]
    assert runs == sorted(runs)


def test_adding_replaces_rows_of_a_run_and_keeps_the_others(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    first = fabricate_sweep(tmp_path / "first", CELLS)
    assert collect_command([str(first), "--csv", str(table)]) == 0
    second = tmp_path / "second"
    again = record(CELLS[0], 0.123)
    write_record(second, again)
    write_record(second, record(ODD, 0.4))
    # Planned in the second sweep, done in the first: the result stays.
    write_record(second, record(CELLS[1], 0.9, status="planned"))
    assert collect_command([str(second), "--csv", str(table)]) == 0
    rows = {row["run_id"]: row for row in read_rows(table)}
    assert len(rows) == len(CELLS) + 1
    assert rows[again["run_id"]]["normalized_mse"] == 0.123
    kept = rows[record(CELLS[1], 0.9)["run_id"]]
    assert (kept["status"], kept["source"]) == ("done", str(first))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_copy_that_knows_less_takes_nothing_away(tmp_path: Path) -> None:
    sweep, table = fabricate_sweep(tmp_path / "sweep", CELLS), tmp_path / "runs.csv"
    assert collect_command([str(sweep), "--csv", str(table)]) == 0
    first, *others = rows = read_rows(table)
    copy = {name: value for name, value in first.items() if name not in ("versions", "mesh")}
    same = {**copy, "source": "wandb:a/b", "folder": "", "kl": 0.5, "commit": None}
    (filled, *_) = merged(rows, [same])
    assert filled == {**first, "source": "wandb:a/b", "folder": "", "kl": 0.5}
    # Of another result nothing is kept.
    again = {**copy, "normalized_mse": 0.2}
    assert merged(rows, [again]) == [again, *others]


def test_checkpoints_are_no_rows_of_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, first, second = tmp_path / "runs.csv", tmp_path / "first", tmp_path / "second"
    write_record(first, record(ODD, 0.4))
    write_record(second, record(ODD, 0.5, tokens=100_096))
    assert collect_command([str(first), "--csv", str(table)]) == 0
    before = table.read_bytes()
    assert collect_command([str(second), "--csv", str(table)]) == 2
    assert "checkpoints of one run are not runs" in capsys.readouterr().err
    assert table.read_bytes() == before


def test_a_run_that_is_done_replaces_one_that_is_not() -> None:
    def row(status: str) -> Row:
        return {"run_id": "a", "status": status, "tokens": 1, "source": status}

    for old, new, kept in [
        ("planned", "done", "done"),
        ("done", "failed", "done"),
        ("diverged", "planned", "diverged"),
        ("failed", "running", "running"),
        ("done", "diverged", "diverged"),
    ]:
        assert [r["status"] for r in merged([row(old)], [row(new)])] == [kept]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a CSV table"),
        ("n,k,loss\n1,2,0.3\n", "needs a column run_id .*its columns are: n, k, loss"),
        ("run_id,k\n", "at least one line"),
        ('run_id,k\n"a,1\n', "is not a CSV table"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "runs.csv"
    table.write_text(text)
    with pytest.raises(TableError, match=message):
        load_runs(table)


@pytest.mark.parametrize(
    ("column", "cell", "problem"),
    [
        ("k", "four", "result.k = 'four' has the wrong type"),
        ("k", "4.5", "result.k = 4.5 has the wrong type"),
        ("normalized_mse", "[1]", r"result.normalized_mse = [1] has the wrong type"),
        ("versions", "torch 2", "cost.versions = 'torch 2' has the wrong type"),
        ("versions", DEEP, f"cost.versions = {DEEP!r} has the wrong type"),
    ],
)
def test_a_line_with_a_wrong_value_is_unreadable(
    tmp_path: Path, column: str, cell: str, problem: str
) -> None:
    sweep, table = fabricate_sweep(tmp_path / "sweep", CELLS), tmp_path / "runs.csv"
    assert collect_command([str(sweep), "--csv", str(table)]) == 0
    cells = pd.read_csv(table, dtype=str, keep_default_na=False)
    cells.loc[0, column] = cell
    cells.to_csv(table, index=False)
    frame = load_runs(table)
    assert frame["status"].tolist() == ["unreadable"] + ["done"] * (len(CELLS) - 1)
    assert frame["error"].iloc[0] == problem


def test_a_table_that_pandas_has_written_again(tmp_path: Path) -> None:
    """Whole numbers as floats and True for true: as spreadsheets and pandas leave them."""
    sweep, table = fabricate_sweep(tmp_path / "sweep", CELLS), tmp_path / "runs.csv"
    assert collect_command([str(sweep), "--csv", str(table)]) == 0
    text = pd.read_csv(table, dtype={"run_id": str, "commit": str, "activations_id": str})
    text.astype({"n_latents": float, "tokens": float}).to_csv(table, index=False)
    assert "True" in table.read_text()
    frame = load_runs(table)
    assert (frame["excluded"] == "").all()
    assert {type(value) for value in frame["n_latents"]} == {int}
    assert frame["bit_exact"].tolist() == [True] * len(CELLS)


def test_values_keep_their_types(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    values: dict[str, Any] = {"x": 1e-300, "y": 0.1 + 0.2, "z": True, "w": [1, None, "a,b"]}
    rows = [{"run_id": "1e5", "status": "done", "source": "s", **values}]
    write_rows(table, rows)
    (row,) = read_rows(table)
    assert {name: row[name] for name in values} == values
    assert row["run_id"] == "1e5"


def test_a_table_is_not_written_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"cannot write .*existing, writable folder"):
        write_rows(tmp_path / "none" / "runs.csv", [])
