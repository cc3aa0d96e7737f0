"""Runs and sweeps that may not be read, and tables that are none, are told and not missed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import PLANTED, demo_cells, fabricate_sweep, planted_table

from analysis.collect import collect_command
from analysis.errors import TableError
from analysis.fit import fit_command
from analysis.judgement.held_out_tests import held_out_tests
from analysis.judgement.holdout import rows_matching
from analysis.laws.joint import LatentsAndK
from analysis.records import folders, load_runs
from analysis.records.folders import find_runs
from analysis.records.table import read_table


def _close(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """As for a user who may not enter the folder; the user of the tests may enter any."""
    lstat = os.lstat

    def refused(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{closed}/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return lstat(path, **options)

    def bytes_of(path: Path) -> bytes:
        refused(path)
        return path.read_bytes()

    monkeypatch.setattr(os, "lstat", refused)
    monkeypatch.setattr(folders, "_bytes_of", bytes_of)


def test_a_run_that_may_not_be_entered_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", demo_cells()[:8])
    closed = find_runs(sweep)[3]
    _close(monkeypatch, closed)
    frame = load_runs(sweep).set_index("run_id")
    assert len(frame) == 8
    assert frame.loc[closed.name, "status"] == "unreadable"
    assert "PermissionError" in frame.loc[closed.name, "error"]
    assert find_runs(tmp_path) == find_runs(sweep)


def test_a_record_that_links_to_itself_is_a_row(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", demo_cells()[:8])
    path = find_runs(sweep)[0] / "record.json"
    path.unlink()
    path.symlink_to(path)
    assert load_runs(sweep)["status"].tolist().count("unreadable") == 1


def test_a_closed_sweep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        fabricate_sweep(tmp_path / name, demo_cells()[:2])
    with monkeypatch.context() as patched:
        _close(patched, tmp_path / "a")
        with pytest.raises(TableError, match=r"a cannot be read \(Permission denied\)"):
            find_runs(tmp_path)

    def refused(path: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(TableError, match=r"a cannot be read \(Permission denied\)"):
        load_runs(tmp_path / "a")


@pytest.mark.parametrize("name", ["x.csv.gz", "x.csv.zip", "x.csv.xz", "x.csv.bz2", "x.csv.tar"])
def test_a_packed_table_that_is_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"n,k,loss\n1,2,0.5\n")
    with pytest.raises(TableError, match="is not a CSV table"):
        read_table(path)


@pytest.mark.parametrize("column", ["n", "k", "loss", "tokens"])
def test_a_number_of_four_hundred_digits(tmp_path: Path, column: str) -> None:
    values = {"n": "1", "k": "2", "loss": "0.5", "tokens": "3"} | {column: "9" * 400}
    path = tmp_path / "x.csv"
    path.write_text(f"{','.join(values)}\n{','.join(values.values())}\n")
    with pytest.raises(TableError, match=column):
        read_table(path)


def test_collect_into_a_folder_or_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = str(fabricate_sweep(tmp_path / "sweep", demo_cells()[:2]))
    assert collect_command([sweep, "--csv", str(tmp_path)]) == 2
    assert "no regular file" in capsys.readouterr().err
    table = tmp_path / "x.csv"
    assert collect_command([sweep, "--csv", str(table)]) == 0

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pandas.read_csv", refused)
    assert collect_command([sweep, "--csv", str(table)]) == 2
    assert "x.csv is not a CSV table (Permission denied)" in capsys.readouterr().err


def test_too_many_refits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--law", "l_nk", "--table", str(tmp_path / "x.csv"), "--bootstrap", "100001"]
    assert fit_command(words) == 2
    assert "--bootstrap 100001 is more than 100,000" in capsys.readouterr().err


@pytest.mark.parametrize(
    "expression", ["n>512 and 3", "3 or n>512", "not n", "not 3", "n>512 and n", "n>512 and 3>2"]
)
def test_a_number_is_no_condition(expression: str) -> None:
    with pytest.raises(TableError, match="does not say true or false for each row"):
        rows_matching(expression, planted_table(PLANTED, demo_cells(), 0.01))


def test_equal_losses_are_tested_without_a_traceback() -> None:
    cells = [cell for cell in demo_cells() if cell.tokens == 500_000]
    table = planted_table(PLANTED, cells, 0.01)
    table.loss[:] = 0.25
    tests = held_out_tests(LatentsAndK, table)
    assert tests
    assert all(np.isfinite(test.p) for test in tests if test.p is not None)
