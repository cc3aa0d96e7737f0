from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fabricate import Cell, demo_cells, fabricate_sweep, record, write_record

from analysis.errors import TableError
from analysis.records.load import load_runs, runs_table
from analysis.study.run_cautions import run_cautions
from scaling.runs.record import Record, problems_of

CELLS = demo_cells((256, 512, 1024))
ODD = Cell(2048, 4, 250_000)
FAILURE = {"type": "RuntimeError", "message": "out of memory", "traceback": None, "rank": 0}


def test_fabricated_records_follow_the_schema() -> None:
    """What the other tests read is what a run writes."""
    assert problems_of(Record.from_json(record(ODD, 0.4))) == []
    assert problems_of(Record.from_json(record(ODD, 0.4, k="4"))) != []


def test_a_row_per_run(tmp_path: Path) -> None:
    frame = load_runs(fabricate_sweep(tmp_path / "sweep", CELLS))
    assert len(frame) == len(CELLS)
    assert (frame["status"] == "done").all()
    assert (frame["excluded"] == "").all()
    assert {"run_id", "n_latents", "k", "tokens", "normalized_mse", "wall_s", "host"} <= {*frame}
    table = runs_table(frame)
    # Rounding to whole batches is not another budget.
    assert set(table.points["tokens"]) == {125e3, 250e3, 500e3, 1e6}
    assert set(frame["tokens"]) != set(table.points["tokens"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "failed", "error": FAILURE}, "status is failed (RuntimeError: out of memory)"),
        ({"status": "diverged"}, "status is diverged"),
        ({"status": "planned", "result": {}, "cost": {}}, "status is planned"),
        ({"status": "running", "result": {}, "cost": {}}, "status is running"),
        ({"normalized_mse": None}, "normalized_mse is null"),
        ({"normalized_mse": 0.0}, "normalized_mse is 0, not above 0"),
        ({"normalized_mse": 1.2}, "no better than predicting the mean"),
        (
            {"dead_fraction": 0.6, "silent_fraction_eval": 0.8},
            "dead_fraction 60% and silent_fraction_eval 80%, both above 50%",
        ),
        ({"schema_version": 99}, "status is unreadable"),
        ({"result": None}, "status is unreadable"),
        ({"cost": []}, "status is unreadable"),
        ({"wall_s": "x"}, "cost.wall_s = 'x' has the wrong type"),
        ({"started_at": 5}, "cost.started_at = 5 has the wrong type"),
        ({"k": 0}, "k is 0, which no run can have"),
        ({"n_latents": 10**400}, "the record lacks n_latents"),
    ],
)
def test_unusable_runs_are_left_out_with_a_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    write_record(sweep, record(ODD, 0.4, **changes))
    table = runs_table(load_runs(sweep))
    assert len(table) == len(CELLS)
    (dropped,) = table.dropped
    assert dropped.run == record(ODD, 0.4)["run_id"]
    assert reason in dropped.reason


@pytest.mark.parametrize(
    "shares",
    [
        {"dead_fraction": 0.6},
        {"silent_fraction_eval": 0.8},
        {"dead_fraction": None, "silent_fraction_eval": 0.8},
    ],
)
def test_one_measure_of_death_is_a_caution_and_no_exclusion(
    tmp_path: Path, shares: dict[str, Any]
) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    write_record(sweep, record(ODD, 0.4, **shares))
    frame = load_runs(sweep)
    assert len(runs_table(frame)) == len(CELLS) + 1
    assert str(record(ODD, 0.4)["run_id"]) in run_cautions(frame)["many_silent_latents"]


def test_a_truncated_record_does_not_stop_the_others(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    run = write_record(sweep, record(ODD, 0.4))
    text = (run / "record.json").read_text()
    (run / "record.json").write_text(text[: len(text) // 2])
    table = runs_table(load_runs(sweep))
    assert len(table) == len(CELLS)
    assert "record.json: JSONDecodeError" in table.dropped[0].reason


def test_copies_count_once(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    write_record(sweep, record(ODD, 0.4, run_id="first"))
    write_record(sweep, record(ODD, 0.4, run_id="second"))
    write_record(sweep, record(ODD, 0.41, run_id="third"))
    table = runs_table(load_runs(sweep))
    assert len(table) == len(CELLS) + 2
    assert table.dropped == (("second", "copy of the run in first"),)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("numerics_version", 2),
        ("activations_id", "ba9876543210"),
        ("eval_hash", "e" * 64),
        ("normalization", "none"),
        ("subject_model", "gpt2"),
        ("layer", 8),
        ("autoencoder", "relu"),
        ("decay_fraction", 0.0),
        ("decay_fraction", 0.25),
        ("dead_after_tokens", 5000),
        ("k_aux", 128),
    ],
)
def test_mixtures_are_refused(tmp_path: Path, name: str, value: object) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    write_record(sweep, record(ODD, 0.4, **{name: value}))
    with pytest.raises(TableError, match="mix") as refusal:
        load_runs(sweep)
    assert f"mix {name}: " in str(refusal.value)
    assert f"{value} (1 runs)".replace("0.0 ", "0 ") in str(refusal.value)
    assert ("train all runs with one " in str(refusal.value)) == (
        name in ("decay_fraction", "dead_after_tokens", "k_aux")
    )
    # An unusable run mixes nothing.
    write_record(sweep, record(ODD, 0.4, **{name: value}, status="diverged"))
    assert len(runs_table(load_runs(sweep))) == len(CELLS)


def test_one_loss_for_all_runs(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    write_record(sweep, record(ODD, 0.4, normalized_mse_ema=None))
    raw = runs_table(load_runs(sweep))
    ema = runs_table(load_runs(sweep, loss="normalized_mse_ema"), "normalized_mse_ema")
    assert len(raw) == len(CELLS) + 1
    assert ema.dropped[0].reason == "normalized_mse_ema is null"
    assert ema.loss_name == "normalized_mse_ema"
    assert ema.loss[0] == pytest.approx(1.001 * raw.loss[0])
    with pytest.raises(TableError, match="no result field lost"):
        load_runs(sweep, loss="lost")


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="not a folder"):
        load_runs(tmp_path / "none")
    (tmp_path / "logs").mkdir()
    with pytest.raises(TableError, match="holds no run"):
        load_runs(tmp_path)
    write_record(tmp_path, record(ODD, 0.4, status="diverged"))
    with pytest.raises(TableError, match=r"none of the 1 runs .*status is diverged"):
        runs_table(load_runs(tmp_path, allow="rejected"))


def test_many_folders_load_quickly(tmp_path: Path) -> None:
    cells = [Cell(256 + i, 8, 250_000) for i in range(500)]
    sweep = fabricate_sweep(tmp_path / "sweep", cells)
    begun = time.perf_counter()
    assert len(load_runs(sweep)) == 500
    # 0.2 s on an idle core; 10,000 folders in 20 s would be 1 s here.
    assert time.perf_counter() - begun < 3
