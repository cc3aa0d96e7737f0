from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fabricate import Cell, demo_cells, fabricate_sweep, record, write_record

from analysis.errors import TableError
from analysis.records.collected import write_rows
from analysis.records.folders import Folders
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
        ({"k": 0}, "k is 0, which no law can take"),
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


def test_a_newer_record_is_unreadable_and_says_so(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    write_record(sweep, record(ODD, 0.4, schema_version=2))
    (dropped,) = runs_table(load_runs(sweep)).dropped
    assert "schema_version 2 is newer than 1" in dropped.reason


def test_tables_of_runs_know_flops(tmp_path: Path) -> None:
    frame = load_runs(fabricate_sweep(tmp_path / "sweep", CELLS))
    table = runs_table(frame)
    assert table.points["flops"].tolist() == frame["flops_dense"].tolist()


def test_sources_of_many_kinds_give_the_same_rows(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = fabricate_sweep(runs / "first", CELLS[:8])
    second = fabricate_sweep(runs / "second", CELLS[8:])
    (runs / "notes").mkdir()
    folder_of_sweeps = load_runs(runs)
    assert folder_of_sweeps["source"].unique().tolist() == [str(runs)]
    listed = load_runs([first, str(second)])
    assert listed["source"].tolist() == [str(first)] * 8 + [str(second)] * (len(CELLS) - 8)
    assert listed.drop(columns="source").equals(folder_of_sweeps.drop(columns="source"))
    one = load_runs(first / str(listed["run_id"].iloc[0]))
    assert one["run_id"].tolist() == listed["run_id"].tolist()[:1]
    write_rows(tmp_path / "second.csv", Folders(second).rows())
    mixed = load_runs([[first], tmp_path / "second.csv"])
    assert runs_table(mixed).loss.tolist() == runs_table(listed).loss.tolist()
    with pytest.raises(TableError, match="the list of sources is empty"):
        load_runs([])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "is not a folder: nothing is there"),
        ("file.parquet", r"is not a folder, nor a table \(.csv\)"),
        ("wandb:only-a-project", "neither ENTITY/PROJECT"),
        ("wandb:/none/there", "neither ENTITY/PROJECT"),
        ("wandb:./none", "neither ENTITY/PROJECT"),
        ("wandb:a/b/", "neither ENTITY/PROJECT"),
    ],
)
def test_sources_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.parquet").touch()
    with pytest.raises(TableError, match=message):
        load_runs(name)


def test_a_planned_run_may_have_no_record_yet(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    (sweep / "a-plan").mkdir()
    (sweep / "a-plan" / "plan.json").write_text("{}")
    frame = load_runs(sweep).set_index("run_id")
    assert frame.loc["a-plan", ["status", "sweep"]].tolist() == ["planned", "sweep"]


def test_evaluations_are_merged_in(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    run_id = str(record(CELLS[0], 0.4)["run_id"])
    values = {"kl": 0.25, "delta_ce": 0.1, "normalized_mse": 9.0, "loss": 8.0, "note": "text"}
    file = sweep / run_id / "evaluation.json"
    file.write_text(json.dumps({**values, "nested": {"x": 1}, "flag": True}))
    frame = load_runs(sweep)
    row = frame.set_index("run_id").loc[run_id]
    assert (row["kl"], row["delta_ce"]) == (0.25, 0.1)
    assert row["loss"] == row["normalized_mse"] < 1
    assert (
        row["evaluation_error"] == "evaluation.json: loss, normalized_mse left out: a record has it"
    )
    assert not {"note", "nested", "flag"} & {*frame}
    assert frame["kl"].notna().sum() == 1
    file.write_text('{"kl": 0.2')
    frame = load_runs(sweep)
    assert "kl" not in frame
    assert "JSONDecodeError" in frame.set_index("run_id").loc[run_id, "evaluation_error"]
    assert len(runs_table(frame)) == len(CELLS)


def test_how_an_evaluation_was_measured_is_a_column(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS[:8])
    run, other = (sweep / str(record(cell, 0.4)["run_id"]) for cell in CELLS[:2])
    entries = {"downstream": {"measured_as": "0123456789ab"}, "probes": {"measured_as": 3}}
    odd = {"omp": "text", "ksvd": {}, "density": {"measured_as": ["x"]}}
    content = {"downstream_kl": 0.25, "metrics": {**entries, **odd}}
    (run / "evaluation.json").write_text(json.dumps(content))
    (other / "evaluation.json").write_text('{"downstream_kl": 0.5, "metrics": ["downstream"]}')
    frame = load_runs(sweep).set_index("run_id")
    assert frame.loc[run.name, "downstream_measured_as"] == "0123456789ab"
    assert frame.loc[other.name, "downstream_kl"] == 0.5
    assert frame["downstream_measured_as"].notna().sum() == 1
    assert [name for name in frame if "measured_as" in name] == ["downstream_measured_as"]
    assert "evaluation_error" not in frame


def test_errors_and_baselines_of_an_evaluation_are_columns(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS[:8])
    run, other = (sweep / str(record(cell, 0.4)["run_id"]) for cell in CELLS[:2])
    entry = {
        "standard_errors": {"probe_loss": {"value": 0.03, "over": "tasks"}, "probe_auc": None},
        "baselines": {
            "probe_loss": {"channels": {"value": 0.51, "difference": -0.02}, "random": "0.5"},
            "probe_auc": ["channels"],
        },
    }
    (run / "evaluation.json").write_text(json.dumps({"probe_loss": 0.49, "metrics": {"p": entry}}))
    odd = {"p": {"standard_errors": [1], "baselines": 3}, "q": 4}
    (other / "evaluation.json").write_text(json.dumps({"probe_loss": 0.5, "metrics": odd}))
    frame = load_runs(sweep).set_index("run_id")
    added = [name for name in frame if str(name).startswith("probe")]
    assert added == ["probe_loss", "probe_loss_of_channels", "probe_loss_standard_error"]
    assert frame.loc[run.name, added].tolist() == [0.49, 0.51, 0.03]
    assert frame.loc[other.name, added].isna().tolist() == [False, True, True]
    assert "evaluation_error" not in frame


def test_a_number_of_an_evaluation_is_not_taken_for_an_error(tmp_path: Path) -> None:
    entry = {"standard_errors": {"kl": {"value": 0.1}}}
    content = {"kl_standard_error": 7.0, "kl": 0.5, "metrics": {"one": entry}}
    [run] = fabricate_sweep(tmp_path / "sweep", CELLS[:1]).glob("*/record.json")
    (run.parent / "evaluation.json").write_text(json.dumps(content))
    assert load_runs(tmp_path / "sweep").loc[0, "kl_standard_error"] == 7.0


@pytest.mark.parametrize("error", [-0.1, "0.1", True, None, [0.1], float("nan"), 10**400])
def test_what_can_be_no_error_and_no_baseline_is_no_column(tmp_path: Path, error: object) -> None:
    entry = {"standard_errors": {"kl": {"value": error}}, "baselines": {"kl": {"a": error}}}
    beside = {"standard_errors": {"kl": error}, "baselines": {"kl": {"b": {"value": [error]}}}}
    metrics = {"metrics": {"one": entry, "two": beside}, "kl": 0.5}
    [run] = fabricate_sweep(tmp_path / "sweep", CELLS[:1]).glob("*/record.json")
    (run.parent / "evaluation.json").write_text(json.dumps(metrics))
    frame = load_runs(tmp_path / "sweep")
    assert [name for name in frame if str(name).startswith("kl")] == ["kl"]


def test_names_that_cannot_be_written_hide_no_run(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS[:8])
    half = "\ud800"
    entry = {
        "measured_as": half,
        "standard_errors": {half: {"value": 1}},
        "baselines": {"kl": {half: {"value": 2}}},
    }
    content = {half: 3, "metrics": {"m": entry}}
    (sweep / str(record(CELLS[0], 0.4)["run_id"]) / "evaluation.json").write_text(
        json.dumps(content)
    )
    frame = load_runs(sweep)
    assert len(frame) == 8
    name = r"\ud800"
    added = [name, f"{name}_standard_error", f"kl_of_{name}", "m_measured_as"]
    assert sorted(frame.loc[0, added].astype(str)) == ["1.0", "2.0", "3.0", name]
    assert frame.to_csv().encode()


def test_mixtures_can_be_allowed_by_name(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    write_record(sweep, record(ODD, 0.4, layer=8, d_model=768))
    with pytest.raises(TableError, match=r'mix layer: .*allow=\("layer",\)'):
        load_runs(sweep, allow=["d_model"])
    assert len(runs_table(load_runs(sweep, allow=("d_model", "layer")))) == len(CELLS) + 1
    with pytest.raises(
        TableError, match=r"allow names n_latents, .*takes rejected and the columns"
    ):
        load_runs(sweep, allow="n_latents")


def test_too_many_rejected_runs_are_an_error(tmp_path: Path) -> None:
    """A fifth is allowed, one more is not; runs yet to end count neither way."""
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS[:12])
    bad: list[dict[str, Any]] = [
        {"status": "diverged"},
        {"dead_fraction": 0.7, "silent_fraction_eval": 0.8},
        {"status": "failed", "error": FAILURE},
    ]
    for i, changes in enumerate(bad):
        write_record(sweep, record(ODD, 0.4, run_id=f"bad{i}", **changes))
    for i, status in enumerate(("planned", "running", "preempted")):
        write_record(sweep, record(ODD, 0.4, run_id=f"yet{i}", status=status))
    assert len(runs_table(load_runs(sweep))) == 12
    (write_record(sweep, record(ODD, 0.4, run_id="bad3")) / "record.json").write_text("{")
    with pytest.raises(TableError, match=r"4 of 16 runs that came to an end .* more than 20%") as e:
        load_runs(sweep)
    for part in ("status is diverged (1)", "its latents are dead (1)", "out of memory", "bad0"):
        assert part in str(e.value)
    assert len(runs_table(load_runs(sweep, allow="rejected"))) == 12


def test_copies_are_rejected_but_a_run_that_two_sweeps_share_is_not(tmp_path: Path) -> None:
    first = fabricate_sweep(tmp_path / "first", CELLS[:8])
    second = fabricate_sweep(tmp_path / "second", CELLS[:8])
    frame = load_runs([first, second])
    assert len(runs_table(frame)) == 8
    assert frame["excluded"].tolist()[8:] == [
        f"copy of the run in {run}" for run in frame["run_id"][:8]
    ]
    for i in range(3):  # the same result under other names
        write_record(first, record(ODD, 0.4, run_id=f"copy{i}"))
    with pytest.raises(
        TableError, match=r"more than 20%: copy of the run \(3\); the first is copy1"
    ):
        load_runs([first, *[write_record(tmp_path / "x", record(ODD, 0.4, run_id="copy3"))]])


def test_checkpoints_passed_as_runs_are_refused(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS)
    run = sweep / str(record(CELLS[0], 0.4)["run_id"])
    step = run / "checkpoints" / "step_00000488"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    for source in (step, run / "checkpoints"):
        with pytest.raises(TableError, match="holds checkpoints of one run") as refusal:
            load_runs(source)
        assert f"Give the run's folder, {run}" in str(refusal.value)
    assert len(load_runs(run)) == 1
    other = write_record(tmp_path / "other", record(CELLS[0], 0.5, tokens=62_464))
    with pytest.raises(
        TableError,
        match=f"run {run.name} is there more than once, done at 2 token counts, 62464 to 124928",
    ):
        load_runs([sweep, other])
