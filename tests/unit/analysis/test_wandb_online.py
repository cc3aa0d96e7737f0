"""The W&B API: rows, whole histories, the cache, limits, interrupts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fabricate import PLANTED, Cell, demo_cells, losses_of, record, write_record
from fake_wandb import CommError, FakeApi, FakeRun, FakeServer, TooManyRequests

from analysis.errors import TableError
from analysis.records import load_curves, load_runs, wandb_reader
from analysis.records.collected import write_rows
from analysis.records.load import runs_table
from analysis.records.pace import Pace
from analysis.records.rows import Row
from analysis.records.wandb_cache import RunCache
from analysis.records.wandb_online import WandbProject

CELLS = demo_cells((256, 512, 1024))


def records() -> list[dict[str, Any]]:
    losses = losses_of(PLANTED, CELLS, 0.005)
    return [record(cell, float(loss)) for cell, loss in zip(CELLS, losses, strict=True)]


def add_run(server: FakeServer, row: dict[str, Any], n_rows: int = 3, **changes: Any) -> FakeRun:
    """A run as the mirror writes it."""
    costs = {**row["cost"], "versions": json.dumps(row["cost"]["versions"])}
    summary = {**row["result"], **costs, "status": row["status"], "_step": 9, "train/loss": 0.5}
    rows = [
        {"_step": s, "step": s, "tokens": 256 * s, "train/loss": 1 / s, "_runtime": 1.0}
        for s in range(1, n_rows + 1)
    ]
    run = FakeRun(server, row["run_id"], "grid", "finished", summary, {}, rows)
    for name, value in changes.items():
        setattr(run, name, value)
    server.runs.append(run)
    return run


@pytest.fixture
def server() -> FakeServer:
    server = FakeServer()
    for row in records():
        add_run(server, row)
    return server


class Clock:
    """Time that passes only in waits."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def pace(self, **options: Any) -> Pace:
        return Pace(sleep=self.sleep, clock=lambda: self.now, **options)


def project(server: FakeServer, cache: Path, group: str | None = None, **pace: Any) -> WandbProject:
    api = FakeApi(server)
    return WandbProject("lab", "laws", group, lambda: api, cache, Clock().pace(**pace))


def by_id(rows: list[Row]) -> dict[str, Row]:
    return {row["run_id"]: row for row in rows}


def test_load_runs_reads_a_project(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in records():
        write_record(tmp_path / "grid", row)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(wandb_reader, "connect", lambda: FakeApi(server))
    monkeypatch.setattr("time.sleep", lambda _: None)
    copies, folders = load_runs("wandb:lab/laws"), load_runs(tmp_path / "grid")
    assert set(copies["source"]) == {"wandb:lab/laws"}
    assert (set(copies["sweep"]), set(copies["folder"])) == ({"grid"}, {""})
    copies, folders = (f.set_index("run_id").sort_index() for f in (copies, folders))
    names = [*records()[0]["result"], *records()[0]["cost"], "loss", "excluded"]
    pd.testing.assert_frame_equal(copies[names], folders[names])
    assert (tmp_path / "cache/sae-scaling/wandb/w.example/lab/laws").is_dir()
    curves = load_curves("wandb:lab/laws/grid", runs=[records()[0]["run_id"]])
    assert curves["train/loss"].tolist() == [1.0, 0.5, 1 / 3]
    assert [*curves] == ["run_id", "step", "tokens", "train/loss"]


def test_numbers_that_w_and_b_spells_otherwise(server: FakeServer, tmp_path: Path) -> None:
    """Whole numbers come back as floats, not finite ones as text."""
    run = server.runs[0]
    run.summary_values |= {"n_latents": 256.0, "flops_dense": 1e12, "dead_fraction": "NaN"}
    row = by_id(project(server, tmp_path).rows())[run.id]
    assert (row["n_latents"], type(row["n_latents"])) == (256, int)
    assert row["dead_fraction"] is None
    server.runs[1].summary_values["k"] = "four"
    row = by_id(project(server, tmp_path / "other").rows())[server.runs[1].id]
    assert (row["status"], row["error"]) == (
        "unreadable",
        "result.k = 'four' has the wrong type",
    )


def test_numbers_of_an_evaluation_are_columns(server: FakeServer, tmp_path: Path) -> None:
    run = server.runs[0]
    run.summary_values |= {"evaluation/kl": 0.125, "evaluation/x": "NaN", "evaluation/k": 99}
    deep = "[" * 100_000
    run.summary_values |= {"versions": deep}
    first, second = project(server, tmp_path).rows()[:2]
    assert first["error"] == f"cost.versions = {deep!r} has the wrong type"
    assert second["versions"] == records()[1]["cost"]["versions"]
    run.summary_values |= {"versions": "{}"}
    row = by_id(project(server, tmp_path / "other").rows())[run.id]
    assert (row["kl"], row["x"], row["k"]) == (0.125, None, CELLS[0].k)
    assert row["evaluation_error"] == "evaluation.json: k left out: a record has it"


def test_a_group_is_read_alone(server: FakeServer, tmp_path: Path) -> None:
    other = record(Cell(2048, 4, 250_000), 0.4)
    add_run(server, other, group="other")
    assert len(project(server, tmp_path, "grid").rows()) == len(CELLS)
    assert [*by_id(project(server, tmp_path, "other").rows())] == [other["run_id"]]
    assert len(project(server, tmp_path).rows()) == len(CELLS) + 1
    with pytest.raises(TableError, match="no runs in group none of lab/laws; check entity"):
        project(server, tmp_path, "none").rows()
    with pytest.raises(TableError, match="no runs in lab/laws; check entity"):
        project(FakeServer(), tmp_path).rows()


def test_finished_runs_are_asked_for_once(server: FakeServer, tmp_path: Path) -> None:
    going = record(Cell(2048, 4, 250_000), 0.4)
    run = add_run(server, going, state="running", summary_values={"_step": 1})
    first = project(server, tmp_path).rows()
    assert server.requests == ["page from 0, lazy=False"]
    server.requests.clear()
    assert project(server, tmp_path).rows() == first
    assert server.requests == ["page from 0, lazy=True", f"run {run.id}"]
    run.state, run.summary_values = "finished", {**going["result"], "status": "done"}
    assert by_id(project(server, tmp_path).rows())[run.id]["status"] == "done"
    server.requests.clear()
    assert len(project(server, tmp_path).rows()) == len(CELLS) + 1
    assert server.requests == ["page from 0, lazy=True"]


def test_a_run_whose_mirror_stopped_is_not_taken_for_done(
    server: FakeServer, tmp_path: Path
) -> None:
    """W&B calls it finished; its result is not there."""
    run = add_run(server, record(Cell(2048, 4, 250_000), 0.4), summary_values={"_step": 3})
    run.config_values = {"autoencoder": {"n_latents": 2048, "k": 4}, "train": {"seed": 1}}
    row = by_id(project(server, tmp_path).rows())[run.id]
    assert (row["status"], row["n_latents"], row["seed"]) == ("running", 2048, 1)
    for _ in range(2):  # its rows are asked for again, from where they ended
        server.requests.clear()
        assert dict(project(server, tmp_path).histories([run.id]))[run.id][-1]["step"] == 3
    assert f"run {run.id}" in server.requests


def test_a_busy_server_is_asked_again(server: FakeServer, tmp_path: Path) -> None:
    for i in range(60):  # a second page
        add_run(server, record(Cell(4096 + i, 4, 250_000), 0.3 + i / 1000))
    server.failures = {
        0: TooManyRequests(),
        2: CommError("HTTP 429", TooManyRequests(headers={"Retry-After": "7"})),
        3: ConnectionError("reset"),
        4: TooManyRequests(503),
    }
    clock = Clock()
    api = FakeApi(server)
    source = WandbProject("lab", "laws", None, lambda: api, tmp_path, clock.pace(gap_s=0.0))
    rows = source.rows()
    assert [row["run_id"] for row in rows] == [run.id for run in server.runs]
    assert clock.waits == [1.0, 7.0, 2.0, 4.0]


def test_a_server_that_stays_busy_is_given_up(server: FakeServer, tmp_path: Path) -> None:
    server.failures = dict.fromkeys(range(99), TooManyRequests())
    clock = Clock()
    api = FakeApi(server)
    source = WandbProject(
        "lab", "laws", None, lambda: api, tmp_path, clock.pace(tries=9, gap_s=0.0)
    )
    with pytest.raises(TableError, match=r"too busy to give the runs of lab/laws .*9 tries.*kept"):
        source.rows()
    assert len(server.requests) == 9
    assert clock.waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@pytest.mark.parametrize(
    "refusal",
    [ValueError("Could not find project laws"), CommError("HTTP 403: permission denied")],
)
def test_a_refusal_is_not_repeated(server: FakeServer, tmp_path: Path, refusal: Exception) -> None:
    server.failures = {0: refusal}
    with pytest.raises(TableError, match=f"W&B did not give .*{refusal}.*check the entity"):
        project(server, tmp_path).rows()
    assert len(server.requests) == 1


def test_requests_are_spaced(server: FakeServer, tmp_path: Path) -> None:
    project(server, tmp_path).rows()
    for run in server.runs:
        run.state, run.summary_values = "running", {"_step": 1}
        run.config_values = {"autoencoder": {"n_latents": 256, "k": 4}}
    for file in tmp_path.rglob("*.json"):
        file.write_text("damaged: asked for again")
    clock = Clock()
    api = FakeApi(server)
    source = WandbProject("lab", "laws", None, lambda: api, tmp_path, clock.pace(gap_s=0.5))
    source.rows()
    n_requests = 1 + len(CELLS)
    assert clock.now >= 0.5 * (n_requests - 1)


def test_whole_histories_come_once(server: FakeServer, tmp_path: Path) -> None:
    run = add_run(server, record(Cell(2048, 4, 250_000), 0.4), n_rows=3500)
    (history,) = [rows for _, rows in project(server, tmp_path).histories([run.id])]
    assert [row["step"] for row in history] == list(range(1, 3501))
    assert history[0] == {"step": 1, "tokens": 256, "train/loss": 1.0}
    assert [r for r in server.requests if r.startswith("history")] == [
        f"history {run.id} from {first}" for first in (0, 1000, 2000, 3000)
    ]
    server.requests.clear()
    assert [*project(server, tmp_path).histories([run.id])] == [(run.id, history)]
    assert not [r for r in server.requests if not r.startswith("page")]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), TooManyRequests(), CommError("no")])
def test_a_history_that_broke_off_goes_on_where_it_was(
    server: FakeServer, tmp_path: Path, failure: BaseException
) -> None:
    server.runs.clear()
    run = add_run(server, record(Cell(2048, 4, 250_000), 0.4), n_rows=3500)
    server.failures = {3: failure}  # the listing and two pages of rows come through
    source = project(server, tmp_path)
    if isinstance(failure, TooManyRequests):
        rows = dict(source.histories(None))[run.id]
    else:
        with pytest.raises((KeyboardInterrupt, TableError)):
            dict(source.histories(None))
        assert len((tmp_path / f"w.example/lab/laws/{run.id}.history.jsonl").read_text()) > 99
        rows = dict(source.histories(None))[run.id]
    assert [row["step"] for row in rows] == list(range(1, 3501))
    asked = [r.split()[-1] for r in server.requests if r.startswith("history")]
    assert asked == ["0", "1000", "2000", "2000", "3000"]


def test_a_row_cut_short_on_disk_is_asked_for_again(server: FakeServer, tmp_path: Path) -> None:
    run = add_run(server, record(Cell(2048, 4, 250_000), 0.4), n_rows=10)
    whole = dict(project(server, tmp_path).histories([run.id]))[run.id]
    file = tmp_path / f"w.example/lab/laws/{run.id}.history.jsonl"
    data = file.read_bytes()
    for n_bytes in (len(data) - 30, len(data) // 2, 5):
        file.write_bytes(data[:n_bytes])
        assert dict(project(server, tmp_path).histories([run.id]))[run.id] == whole
        assert file.read_bytes() == data
    file.write_bytes(data[:50] + b"\n" + data[50:])
    assert dict(project(server, tmp_path).histories([run.id]))[run.id] == whole


def test_a_run_that_goes_on_is_asked_for_its_new_rows(server: FakeServer, tmp_path: Path) -> None:
    going = record(Cell(2048, 4, 250_000), 0.4)
    run = add_run(server, going, n_rows=5, state="running", summary_values={"_step": 5})
    assert len(dict(project(server, tmp_path).histories([run.id]))[run.id]) == 5
    run.rows += [{**run.rows[-1], "_step": step, "step": step} for step in (6, 7)]
    server.requests.clear()
    assert len(dict(project(server, tmp_path).histories([run.id]))[run.id]) == 7
    assert server.requests[-1] == f"history {run.id} from 6"


def test_a_foreign_project_is_refused_with_the_columns(server: FakeServer, tmp_path: Path) -> None:
    server.runs.clear()
    for i in range(3):
        foreign = {"accuracy": 0.5 + i, "_step": 3}
        add_run(server, record(Cell(256 + i, 4, 1), 0.4), summary_values=foreign)
    message = r"wandb:lab/laws: none of its 3 runs has n_latents, k, tokens, seed .* is: accuracy\."
    with pytest.raises(TableError, match=message):
        project(server, tmp_path).rows()


def test_another_programs_runs_with_the_columns_are_read(
    server: FakeServer, tmp_path: Path
) -> None:
    """Sizes at the top of the config, the loss in the summary, no status of ours."""
    server.runs.clear()
    add_run(
        server,
        record(Cell(256, 4, 1), 0.4),
        summary_values={"normalized_mse": 0.3, "tokens": 1000},
        config_values={"n_latents": 256, "k": 4, "seed": 0},
    )
    (row,) = project(server, tmp_path).rows()
    assert (row["status"], row["n_latents"], row["normalized_mse"]) == ("done", 256, 0.3)


def test_an_unwritable_cache_is_named(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "w.example").write_text("a file where a folder should be")
    remedy = "set XDG_CACHE_HOME to a writable folder"
    with pytest.raises(TableError, match=remedy):
        project(server, tmp_path).rows()
    with pytest.raises(TableError, match=remedy):
        RunCache.of("https://w.example", "lab", "laws", tmp_path).add_history("a", [{"step": 1}])


def test_fits_take_a_project(server: FakeServer, tmp_path: Path) -> None:
    write_record(tmp_path / "x", record(Cell(2048, 4, 250_000), 0.4))
    server.runs.pop()
    api = FakeApi(server)
    rows = WandbProject("lab", "laws", None, lambda: api, tmp_path, Clock().pace()).rows()
    assert len(rows) == len(CELLS) - 1
    write_rows(tmp_path / "runs.csv", rows)
    frame = load_runs([tmp_path / "runs.csv", tmp_path / "x"])
    assert len(runs_table(frame)) == len(CELLS)


def test_without_a_login_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLogin:
        def Api(self, **_: Any) -> None:
            raise RuntimeError("api_key not configured")

    monkeypatch.setattr(wandb_reader, "_wandb", NoLogin)
    with pytest.raises(TableError, match=r"api_key not configured.*run `wandb login`"):
        wandb_reader.connect()


def test_without_the_package_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(TableError, match="install it with `pip install wandb`"):
        wandb_reader.connect()
