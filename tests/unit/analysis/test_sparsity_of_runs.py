"""Runs whose sparsity is an outcome: loaded without k, kept apart, given to laws by measured L0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fabricate import PLANTED, Cell, demo_cells, losses_of, record, write_record
from planted_frontiers import plant

from analysis.calibration.cells import read_cells
from analysis.collect import collect
from analysis.errors import TableError
from analysis.fit import fit_command
from analysis.laws.joint import LatentsAndK
from analysis.records.load import load_runs, runs_table
from analysis.records.wandb_rows import refuse_foreign
from analysis.study.run_cautions import run_cautions

LAW = LatentsAndK(
    **{name: PLANTED.parameters[name] for name in ("alpha", "beta_k", "beta_n", "gamma")},
    **{name: PLANTED.parameters[name] for name in ("zeta", "eta")},
)
CELL = Cell(512, 16, 1_000_000)


def _write(folder: Path, name: str, **result: Any) -> None:
    row = record(CELL, result.pop("normalized_mse", 0.3), run_id=name)
    row["result"] |= {"autoencoder": "relu", "k": None, "penalty": 1e-3, "l0": 20.0} | result
    write_record(folder, row)


def _excluded(folder: Path, **how: Any) -> dict[str, str]:
    frame = load_runs(folder, allow=("rejected", "autoencoder"), **how)
    return dict(zip(frame["run_id"], frame["excluded"], strict=True))


def test_a_run_without_k_is_usable_by_its_measured_l0(tmp_path: Path) -> None:
    _write(tmp_path, "a")
    _write(tmp_path, "unmeasured", l0=None)
    _write(tmp_path, "silent", l0=0.0)
    _write(tmp_path, "incomplete", autoencoder="topk", normalized_mse=0.31)
    assert _excluded(tmp_path) == {
        "a": "",
        "unmeasured": "the record lacks l0",
        "silent": "l0 is 0.0, which no law can take",
        "incomplete": "the record lacks k",
    }


def test_averaged_weights_go_with_their_own_l0(tmp_path: Path) -> None:
    _write(tmp_path, "a", normalized_mse_ema=0.2, l0_ema=33.0)
    _write(tmp_path, "older", normalized_mse_ema=0.21)
    _write(tmp_path, "given", autoencoder="topk", k=16, l0=16.0, normalized_mse_ema=0.25)
    averaged = load_runs(
        tmp_path, loss="normalized_mse_ema", allow=("rejected", "autoencoder")
    ).set_index("run_id")
    assert averaged["excluded"].to_dict() == {
        "a": "", "older": "the record lacks l0_ema", "given": ""
    }  # fmt: skip
    assert averaged["l0"]["a"] == 33.0
    assert averaged["l0"]["given"] == 16.0
    assert load_runs(tmp_path, allow=("autoencoder",)).set_index("run_id")["l0"]["a"] == 20.0


def test_runs_that_only_lack_k_are_no_copies(tmp_path: Path) -> None:
    _write(tmp_path, "a")
    _write(tmp_path, "again")
    _write(tmp_path, "other", l0=21.0, penalty=9e-4)
    assert _excluded(tmp_path) == {"a": "", "again": "copy of the run in a", "other": ""}


def test_architectures_mix_only_where_allowed_and_each_with_its_own_treatment(
    tmp_path: Path,
) -> None:
    plant(tmp_path, ("topk", "relu"), (512,), (0,))
    with pytest.raises(TableError, match=r"mix autoencoder: topk \(4 runs\), relu \(4 runs\)"):
        load_runs(tmp_path)
    assert (load_runs(tmp_path, allow="autoencoder")["excluded"] == "").all()
    _write(tmp_path, "treated", dead_treatment="resample", k_aux=0)
    with pytest.raises(TableError, match=r"mix dead_treatment: none \(4 runs\), resample"):
        load_runs(tmp_path, allow="autoencoder")


def test_older_records_say_nothing_of_dead_treatment(tmp_path: Path) -> None:
    _write(tmp_path, "old")
    _write(tmp_path, "young", dead_treatment="none", normalized_mse=0.32)
    assert _excluded(tmp_path) == {"old": "", "young": ""}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on a planted L(n,k) in measured L0, no two of one L0."""
    folder = tmp_path_factory.mktemp("l0")
    cells = [cell for cell in demo_cells() if cell.tokens == 500_000]
    for place, (cell, loss) in enumerate(zip(cells, losses_of(LAW, cells, 0.0), strict=True)):
        row = record(cell, float(loss), run_id=f"{place:012x}")
        row["result"] |= {"autoencoder": "relu", "k": None, "penalty": 1e-3 / cell.k}
        write_record(folder, row)
    collect([str(folder)], folder / "runs.csv")
    return folder / "runs.csv"


def test_laws_of_k_refuse_runs_without_and_say_what_to_do(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit_command(["--law", "l_nk", "--table", str(table)]) == 2
    error = capsys.readouterr().err
    assert "22 of 22 runs have no k" in error
    assert "--k l0" in error
    assert "analysis.equal_l0" in error
    with pytest.raises(TableError, match="have no k"):
        runs_table(load_runs(table))


def test_measured_l0_stands_for_k(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    words = ["--law", "l_nk", "--table", str(table), "--k", "l0", "--bootstrap", "0"]
    assert fit_command([*words, "--json", str(out)]) == 0
    found = json.loads(out.read_text())["params"]
    assert found == pytest.approx(LAW.parameters, rel=1e-3)


def test_l0_needs_its_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("n,k,loss\n512,16,0.3\n1024,16,0.2\n")
    assert fit_command(["--law", "l_n", "--table", str(path), "--k", "l0"]) == 2
    assert "has no column l0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fit_command(["--law", "l_n", "--table", str(path), "--k", "many"])


def test_a_project_of_runs_without_k_is_no_foreign_one() -> None:
    row = {"status": "done", "n_latents": 512, "k": None, "tokens": 1000, "seed": 0}
    refuse_foreign([{**row, "autoencoder": "relu"}], "wandb:a/b", ["n_latents"])
    with pytest.raises(TableError, match="has k in its summary"):
        refuse_foreign([{**row, "autoencoder": "topk"}], "wandb:a/b", ["n_latents"])
    planned = {**row, "status": "running", "autoencoder": None}
    refuse_foreign([planned], "wandb:a/b", ["n_latents"])


def test_rates_of_runs_without_k_are_not_calibrated_at_one_penalty(table: Path) -> None:
    with pytest.raises(TableError, match=r"22 of 22 runs have no k.*--by lr"):
        read_cells([table], "normalized_mse")


def test_cautions_name_the_l0_of_a_run_without_k(tmp_path: Path) -> None:
    _write(tmp_path, "dying", dead_fraction=0.4)
    assert "n = 512, L0 = 20" in run_cautions(load_runs(tmp_path))["dying_latents"]
