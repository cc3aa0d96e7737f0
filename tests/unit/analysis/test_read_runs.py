"""A table of records is as safe as the runs it was collected from; other tables keep their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricate import PLANTED, demo_cells, losses_of, record, write_record

from analysis.collect import collect_command
from analysis.errors import TableError
from analysis.fit import fit_command
from analysis.records.load import load_runs, read_runs, runs_table

CELLS = demo_cells()


def _sweep(folder: Path) -> Path:
    for cell, loss in zip(CELLS, losses_of(PLANTED, CELLS, 0.005), strict=True):
        write_record(folder, record(cell, float(loss)))
    return folder


def _change(sweep: Path, first: int, last: int, **changes: Any) -> None:
    for cell in CELLS[first:last]:
        file = sweep / str(record(cell, 0.4)["run_id"]) / "record.json"
        row = json.loads(file.read_text())
        for name, value in changes.items():
            section = next((s for s in (row["result"], row["cost"]) if name in s), row)
            section[name] = value
        file.write_text(json.dumps(row))


def _collected(sweep: Path) -> Path:
    table = sweep.with_suffix(".csv")
    assert collect_command([str(sweep), "--csv", str(table)]) == 0
    return table


def test_a_collected_table_gives_the_runs_of_its_folder(tmp_path: Path) -> None:
    """The dead ones left out with the reason, and budgets as they were asked for."""
    sweep = _sweep(tmp_path / "sweep")
    _change(sweep, 0, 8, dead_fraction=0.9, silent_fraction_eval=0.9)
    _change(sweep, 8, 9, status="diverged")
    table, folder = read_runs(_collected(sweep)), runs_table(load_runs(sweep))
    assert (table.runs, table.dropped, table.seeds) == (folder.runs, folder.dropped, folder.seeds)
    assert len(table) == len(CELLS) - 9
    assert sum("latents are dead" in drop.reason for drop in table.dropped) == 8
    for axis, values in folder.points.items():
        np.testing.assert_array_equal(table.points[axis], values)
    assert {*table.points["tokens"]} == {cell.tokens for cell in CELLS[9:]}
    averaged = read_runs(_collected(sweep), loss="normalized_mse_ema")
    np.testing.assert_allclose(averaged.loss, table.loss * 1.001)


@pytest.mark.parametrize(
    ("last", "changes", "words", "allow"),
    [
        (9, {"eval_hash": "e" * 64}, "the runs mix eval_hash", "eval_hash"),
        (9, {"decay_fraction": 0.0}, "the runs mix decay_fraction", "decay_fraction"),
        (15, {"status": "diverged"}, "15 of 56 runs that came to an end", "rejected"),
        (
            15,
            {"dead_fraction": 0.9, "silent_fraction_eval": 0.9},
            "latents are dead (15)",
            "rejected",
        ),
    ],
)
def test_a_fit_refuses_of_a_table_what_it_refuses_of_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    last: int,
    changes: dict[str, Any],
    words: str,
    allow: str,
) -> None:
    sweep = _sweep(tmp_path / "sweep")
    _change(sweep, 0, last, **changes)
    arguments = ["--law", "l_nkd", "--table", str(_collected(sweep)), "--bootstrap", "0"]
    assert fit_command(arguments) == 2
    refusal = capsys.readouterr().err
    assert words in refusal
    assert f"--allow {allow}" in refusal
    with pytest.raises(TableError, match=words.replace("(", r"\(").replace(")", r"\)")):
        load_runs(sweep)
    assert fit_command([*arguments, "--allow", f"layer,{allow}"]) == 0
    assert fit_command([*arguments, "--allow", allow, "--allow", "n_latents"]) == 2
    assert "allow names n_latents" in capsys.readouterr().err


def test_tokens_to_convergence_are_as_trained(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path / "sweep")
    with pytest.raises(TableError, match="nothing says which of them a run took to converge"):
        read_runs(_collected(sweep), response="tokens")
    for cell in CELLS:
        file = sweep / str(record(cell, 0.4)["run_id"]) / "record.json"
        row = json.loads(file.read_text())
        row["result"] |= {"converged": cell != CELLS[1], "last_doubling_fall": 0.01}
        file.write_text(json.dumps(row))
    _change(sweep, 0, 1, dead_fraction=0.9, silent_fraction_eval=0.9)
    path = _collected(sweep)
    table = read_runs(path, response="tokens")
    assert (table.response, table.loss_name, len(table)) == ("tokens", "tokens", len(CELLS) - 2)
    assert {*table.loss} == {cell.tokens // 256 * 256 for cell in CELLS[2:]}
    dead, limited = (drop.reason for drop in table.dropped)
    assert "latents are dead" in dead
    assert limited == "converged is false: the run came to its limit of tokens first"
    with pytest.raises(TableError, match="no column ema"):
        read_runs(path, response="tokens", loss="ema")


def test_a_plain_table_keeps_its_own_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame(CELLS).assign(loss=losses_of(PLANTED, CELLS, 0.005))
    path = tmp_path / "plain.csv"
    frame.to_csv(path, index=False)
    assert read_runs(path).loss_name == "loss"
    frame.assign(layer=[8] * 9 + [9] * (len(CELLS) - 9)).to_csv(path, index=False)
    arguments = ["--law", "l_nkd", "--table", str(path), "--bootstrap", "0"]
    assert fit_command(arguments) == 2
    assert f"{path}: the runs mix layer: 9 (47 runs), 8 (9 runs)" in capsys.readouterr().err
    assert fit_command([*arguments, "--allow", "layer"]) == 0
