from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricate import PLANTED, demo_cells, losses_of
from gpt4 import POINTS

from analysis.errors import TableError
from analysis.fit import fit_command
from analysis.records.table import read_table, table_from_frame


def _frame() -> pd.DataFrame:
    cells = demo_cells()
    frame = pd.DataFrame(cells).rename(columns={"n": "n_latents"})
    return frame.assign(
        normalized_mse=losses_of(PLANTED, cells, 0.005),
        run_id=[f"run{i}" for i in range(len(cells))],
        seed=0,
    )


def _write(tmp_path: Path, frame: pd.DataFrame) -> Path:
    path = tmp_path / "runs.csv"
    frame.to_csv(path, index=False)
    return path


def test_columns_by_either_name(tmp_path: Path) -> None:
    frame = _frame()
    renamed = frame.rename(columns={"n_latents": "n", "normalized_mse": "loss"})
    first, second = (table_from_frame(f, source="it") for f in (frame, renamed))
    np.testing.assert_array_equal(first.points["n"], second.points["n"])
    np.testing.assert_array_equal(first.loss, second.loss)
    assert first.loss_name == "normalized_mse"
    chosen = table_from_frame(
        frame.assign(ema=frame["normalized_mse"] / 2), source="it", loss="ema"
    )
    np.testing.assert_allclose(chosen.loss, first.loss / 2)


def test_unfinished_rows_are_dropped_with_their_reason() -> None:
    frame = _frame().assign(status="done")
    frame.loc[3, ["status", "normalized_mse"]] = ["failed", np.nan]
    table = table_from_frame(frame, source="it")
    assert len(table) == len(frame) - 1
    assert table.dropped == (("run3", "status is failed"),)


def test_other_seeds_and_other_losses_are_not_copies() -> None:
    frame = _frame()
    again = frame.assign(seed=1, run_id=[f"again{i}" for i in range(len(frame))])
    assert len(table_from_frame(pd.concat([frame, again]), source="it")) == 2 * len(frame)


def _with(column: str, value: object):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object})
        frame.loc[4, column] = value
        return frame

    return change


BAD_FRAMES = {
    "nan loss": (_with("normalized_mse", float("nan")), "finite"),
    "zero loss": (_with("normalized_mse", 0.0), "> 0"),
    "negative loss": (_with("normalized_mse", -0.2), "> 0"),
    "loss of the mean": (_with("normalized_mse", 1.0), "< 1"),
    "infinite loss": (_with("normalized_mse", float("inf")), "finite"),
    "text as loss": (_with("normalized_mse", "n/a?"), "not all numbers"),
    "zero n": (_with("n_latents", 0), "n_latents must be > 0"),
    "missing k": (_with("k", float("nan")), "k must be > 0"),
    "negative tokens": (_with("tokens", -5), "tokens must be > 0"),
    "run_id twice": (_with("run_id", "run5"), "more than once"),
    "no k": (lambda frame: frame.drop(columns="k"), "no column k"),
    "no n": (lambda frame: frame.drop(columns="n_latents"), "no column n_latents or n"),
    "no loss": (lambda frame: frame.drop(columns="normalized_mse"), "normalized_mse or loss"),
    "no rows": (lambda frame: frame.head(0), "no rows"),
    "copies": (lambda f: pd.concat([f, f.head(2)]).drop(columns="run_id"), "exact duplicates"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_tables(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = BAD_FRAMES[case]
    path = _write(tmp_path, change(_frame()))
    with pytest.raises(TableError, match=words):
        read_table(path)
    out = tmp_path / "out.json"
    arguments = ("--law", "l_nkd", "--table", str(path), "--json", str(out))
    assert fit_command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert len(captured.err.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("content", ["", "\n\n", 'n,k,loss\n"1,2\n', "n,k,loss\n1,2,3,4,5,6\n1\n"])
def test_files_that_are_no_tables(tmp_path: Path, content: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(content)
    with pytest.raises(TableError):
        read_table(path)


def test_binary_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(b"\x80\x81\xff\x00")
    with pytest.raises(TableError, match="not a CSV"):
        read_table(path)
    with pytest.raises(TableError, match="not a file"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--law", "l_nk"), "one token budget"),
        (("--law", "l_nkd", "--holdout", "n>"), "--holdout"),
        (("--law", "l_nkd", "--holdout", "n > 300"), "at least 11 runs"),
        (("--law", "l_nkd", "--bootstrap", "7"), "--bootstrap 7"),
        (("--law", "l_nkd", "--loss", "ema"), "no column ema"),
    ],
)
def test_bad_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], words: str
) -> None:
    assert fit_command(("--table", str(_write(tmp_path, _frame())), *more)) == 2
    assert words in capsys.readouterr().err


def test_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--law", "l_nk", "--table", str(POINTS), "--json", str(tmp_path / "no" / "x"))
    assert fit_command((*arguments, "--bootstrap", "0")) == 2
    assert "cannot write" in capsys.readouterr().err


def test_law_with_tokens_states_its_reference_sizes(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    table = str(_write(tmp_path, _frame()))
    arguments = ("--law", "l_nkdu", "--table", table, "--json", str(out), "--holdout", "n==4096")
    assert fit_command(arguments) == 0
    found = json.loads(out.read_text())
    assert set(found["params"]) == {*PLANTED.parameters}
    assert found["reference"] == {"n0": 1024.0, "k0": 16.0}
    assert found["holdout"]["n"] == 5
    assert found["warnings"] == ["limit_extrapolated"]
    assert found["n_used"] == len(_frame()) - 5


def test_as_a_program(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "analysis.fit", "--law", "l_nk", "--table", str(POINTS)]
    done = subprocess.run(
        [*command, "--json", str(out)], capture_output=True, text=True, check=True
    )
    assert "alpha" in done.stdout
    assert json.loads(out.read_text())["schema_version"] == 1
    refused = subprocess.run([*command, "--loss", "x"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
