"""Workspaces as W&B would get them: names, axes, filters; and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from analysis.dashboards.cells import Cell, Sweep, read_sweep
from analysis.dashboards.colors import run_colors
from analysis.dashboards.main import main
from analysis.errors import TableError
from scaling.runs.fields import COST_FIELDS, RESULT_FIELDS
from scaling.runs.store import SweepStore

ROOT = Path(__file__).parents[3]
CELLS = [(256, 4, 125_000), (256, 16, 125_000), (1024, 4, 250_000), (1024, 16, 500_000)]


def write_sweep(folder: Path, **logger: str | None) -> Path:
    """Planned runs with what a dashboard reads of a plan."""
    for number, (n, k, tokens) in enumerate(CELLS):
        SweepStore(folder).folder(f"run{number}").prepare(
            {
                "autoencoder": {"n_latents": n, "k": k},
                "tokens_requested": tokens,
                "config": {"logger": {"project": "laws", "entity": None, **logger}},
            }
        )
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "demo")


@pytest.fixture
def library() -> None:
    with warnings.catch_warnings():
        # The library's own, about its validators, when it is first imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        pytest.importorskip(
            "wandb_workspaces.workspaces", reason="the extra `dashboards` is not installed"
        )


@pytest.fixture
def build(tmp_path: Path, library):
    def command(*arguments: object) -> dict[str, Any]:
        out = tmp_path / "out.json"
        assert main([*map(str, arguments), "--json", str(out)]) == 0
        return json.loads(out.read_text())

    return command


def panels_of(workspace: dict[str, Any], section: str | None = None) -> list[dict[str, Any]]:
    found = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    return [p for s in found if section in (None, s["name"]) for p in s["panels"]]


def run_set_of(workspace: dict[str, Any]) -> dict[str, Any]:
    [run_set] = workspace["spec"]["section"]["runSets"]
    return run_set


def lines_of(workspace: dict[str, Any]) -> list[dict[str, Any]]:
    panels = panels_of(workspace)
    return [p["config"] for p in panels if p["viewType"] == "Run History Line Plot"]


def documented_metrics() -> set[str]:
    text = (ROOT / "docs" / "records.md").read_text().split("## metrics.jsonl")[1]
    return set(re.findall(r"^\| `([^`]+)` \|", text.split("\n## ")[0], flags=re.MULTILINE))


def test_the_law_is_a_point_per_run_on_log_axes_colored_by_k(build, sweep):
    law = panels_of(build(sweep), "Law")[0]
    assert law["viewType"] == "Scatter Plot"
    axes = {key: law["config"][key] for key in ("xAxis", "yAxis", "zAxis")}
    assert axes == {
        "xAxis": "summary:n_latents",
        "yAxis": "summary:normalized_mse",
        "zAxis": "summary:k",
    }
    assert [law["config"][f"{a}AxisLogScale"] for a in "xyz"] == [True] * 3
    offsets = [point["offset"] for point in law["config"]["customGradient"]]
    assert (offsets[0], offsets[-1]) == (0, 100)
    assert offsets == sorted(offsets)


def test_loss_is_drawn_against_tokens_by_n_by_k_and_for_each_run(build, sweep):
    panels = panels_of(build(sweep), "Loss against tokens")
    assert [p["config"]["metrics"] for p in panels] == [["train/normalized_mse"]] * 3
    assert [p["config"].get("groupBy") for p in panels] == [
        "autoencoder.value.n_latents",
        "autoencoder.value.k",
        None,
    ]
    # A run table that is grouped would override what a panel groups by.
    assert run_set_of(build(sweep))["grouping"] == []


def test_every_curve_is_a_documented_metric_against_tokens(build, sweep):
    lines = lines_of(build(sweep))
    assert {line["xAxis"] for line in lines} == {"tokens"}
    drawn = {name for line in lines for name in line["metrics"]}
    assert drawn >= {"train/dead_fraction", "perf/tokens_per_s", "eval/normalized_mse"}
    assert drawn <= documented_metrics()


def test_every_final_number_is_in_the_summary_that_the_mirror_sends(build, sweep):
    workspace = build(sweep)
    scatters = [p["config"] for p in panels_of(workspace) if p["viewType"] == "Scatter Plot"]
    names = {config[f"{axis}Axis"] for config in scatters for axis in "xyz"}
    names |= {c for c in run_set_of(workspace)["runFeed"]["columnOrder"] if "summary" in c}
    assert names
    assert {name.split(":")[0] for name in names} == {"summary"}
    assert {name.split(":")[1] for name in names} <= {*RESULT_FIELDS, *COST_FIELDS, "status"}


def test_every_configuration_key_is_one_of_a_run(build, sweep):
    """As W&B stores it: {"autoencoder": {"value": {"n_latents": ...}}}."""
    from dataclasses import fields

    from scaling.autoencoder_config import TopKConfig
    from scaling.config import TrainConfig

    workspace = build(sweep)
    keys = {key["key"]["name"] for key in run_set_of(workspace)["sort"]["keys"]}
    keys |= {line["groupBy"] for line in lines_of(workspace) if "groupBy" in line}
    assert len(keys) == 4
    owners = {"autoencoder": TopKConfig, "train": TrainConfig}
    for key in keys:
        group, value, name = key.split(".")
        assert value == "value"
        assert name in {field.name for field in fields(owners[group])}


def test_only_the_runs_of_the_sweep_are_shown(build, sweep, tmp_path):
    alone = run_set_of(build(sweep))["filters"]["filters"]
    assert [(f["key"], f["op"], f["value"]) for f in alone] == [
        ({"section": "run", "name": "group"}, "=", "demo")
    ]
    other = write_sweep(tmp_path / "other.grid-2")
    both = run_set_of(build(sweep, other, "--tag", "final"))["filters"]["filters"]
    assert [(f["key"]["name"], f["op"], f["value"]) for f in both] == [
        ("group", "IN", ["demo", "other.grid-2"]),
        ("tags", "IN", ["final"]),
    ]


def test_a_run_table_can_be_grouped_by_cell(build, sweep):
    grouping = run_set_of(build(sweep, "--group-by", "n", "k", "tokens"))["grouping"]
    assert [key["name"] for key in grouping] == [
        "autoencoder.value.n_latents",
        "autoencoder.value.k",
        "train.value.tokens",
    ]
    assert {key["section"] for key in grouping} == {"config"}


def test_the_averaged_weights_are_another_loss_everywhere(build, sweep):
    text = json.dumps(build(sweep, "--loss", "normalized_mse_ema"))
    assert "summary:normalized_mse_ema" in text
    assert '"eval/normalized_mse_ema"' in text
    assert 'summary:normalized_mse"' not in text
    assert '"eval/normalized_mse"' not in text


def test_all_runs_are_drawn_each_in_its_color(build, sweep, tmp_path):
    workspace = build(sweep)
    section = workspace["spec"]["section"]
    assert section["settings"]["maxRuns"] == len(CELLS)
    assert set(section["customRunColors"]) == {f"run{i}" for i in range(len(CELLS))}
    elsewhere = build("elsewhere")["spec"]["section"]
    assert elsewhere["customRunColors"] == {}
    assert elsewhere["settings"]["maxRuns"] == 200


def test_equal_sweeps_give_equal_files(build, sweep):
    assert build(sweep) == build(sweep)


def test_the_project_is_that_of_the_runs_unless_given(build, sweep, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    assert [build(sweep)[key] for key in ("entity", "project", "displayName")] == [
        *("", "laws", "demo")
    ]
    given = build(sweep, "--entity", "lab", "--project", "p")
    assert (given["entity"], given["project"]) == ("lab", "p")
    owned = write_sweep(tmp_path / "owned", entity="team")
    monkeypatch.setenv("WANDB_ENTITY", "me")
    assert [build(s)["entity"] for s in (sweep, owned)] == ["me", "team"]


def test_hue_tells_k_and_shade_tells_n():
    colors = run_colors([Cell(f"{n}-{k}", n, k, 1) for n in (64, 128) for k in (2, 4, 8)])
    assert len(set(colors.values())) == 6
    assert (colors["128-2"], colors["128-8"]) == ("#3f7fd0", "#b8438e")

    def lightness(color: str) -> int:
        return sum(int(color[i : i + 2], 16) for i in (1, 3, 5))

    assert all(lightness(colors[f"64-{k}"]) > lightness(colors[f"128-{k}"]) for k in (2, 4, 8))
    assert run_colors([]) == {}
    assert run_colors([Cell("a", 64, 2, 1)]) == {"a": "#b8438e"}
    # Where sparsity is an outcome, the largest penalty is like the smallest k.
    paid = [Cell(f"{p:g}", 64, None, 1, p) for p in (4e-3, 2e-3, 1e-3)]
    assert [*run_colors(paid).values()] == [colors[f"128-{k}"] for k in (2, 4, 8)]


def test_a_plan_without_k_is_a_cell(sweep: Path) -> None:
    plan = {"n_latents": 256, "k": None, "options": {"penalty": 1e-3}}
    SweepStore(sweep).folder("relu").prepare({"autoencoder": plan, "tokens_requested": 1000})
    assert Cell("relu", 256, None, 1000, 1e-3) in read_sweep(str(sweep)).cells
    plan = {"n_latents": 256, "k": None, "options": {"penalty": -1}}
    SweepStore(sweep).folder("odd").prepare({"autoencoder": plan, "tokens_requested": 1000})
    with pytest.raises(TableError, match="penalty = -1 is not above 0"):
        read_sweep(str(sweep))


def test_the_cells_of_a_sweep(sweep):
    read = read_sweep(str(sweep))
    assert [(c.n, c.k, c.tokens) for c in read.cells] == CELLS
    assert (read.name, read.project, read.entity) == ("demo", "laws", None)
    assert read_sweep("demo_elsewhere") == Sweep("demo_elsewhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/absent", "--json", "{tmp}/x"], "absent is not a folder"),
        (["{tmp}/empty", "--json", "{tmp}/x"], "holds no run"),
        (["{tmp}/torn", "--json", "{tmp}/x"], "is no plan of a run"),
        (["{tmp}/blank", "--json", "{tmp}/x"], "KeyError: 'autoencoder'"),
        (["it's", "--json", "{tmp}/x"], "the sweep's name \"it's\" has signs"),
        (["a=b", "--json", "{tmp}/x"], "the sweep's name 'a=b' has signs"),
        (["demo", "--json", "{tmp}/x", "--tag", "a<b"], "the tag 'a<b' has signs"),
        (["demo"], "give --json OUT"),
        (["demo", "--json", "{tmp}/x", "--replace", "http://u"], "give --push with it"),
        (["demo", "--push"], "give --entity"),
        (["{tmp}/p1", "{tmp}/p2", "--json", "{tmp}/x"], "several values of logger.project (p, q)"),
        (["demo", "--json", "{tmp}/no/x"], "existing, writable folder"),
    ],
)
def test_unusable_input_is_named(tmp_path, library, monkeypatch, capsys, arguments, message):
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    (tmp_path / "empty").mkdir()
    for name, text in (("torn", '{"auto'), ("blank", "{}")):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "plan.json").write_text(text)
    write_sweep(tmp_path / "p1", project="p")
    write_sweep(tmp_path / "p2", project="q")
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_names_that_a_filter_can_hold(tmp_path):
    for name in ("demo", "nk grid", "a-b_c.d", "2x"):
        assert read_sweep(name).name == name
    with pytest.raises(TableError, match="has signs"):
        read_sweep("two  spaces")


def test_without_the_extra_the_remedy_is_named(sweep, tmp_path):
    script = f"""
import sys
sys.modules["wandb_workspaces"] = None
from analysis.dashboards.main import main
raise SystemExit(main([{str(sweep)!r}, "--json", {str(tmp_path / "x")!r}]))
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert answer.returncode == 2
    assert "dashboards need wandb-workspaces, which is not installed; pip ins" in answer.stderr


def damaged(changes: dict[str, Any]) -> str:
    plan = {
        "autoencoder": {"n_latents": 256, "k": 4},
        "tokens_requested": 125_000,
        "config": {"logger": {"project": "laws", "entity": None}},
    }
    return json.dumps(plan | changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (damaged({"config": None}), "config.logger is not an object"),
        (damaged({"config": [1]}), "config.logger is not an object"),
        (damaged({"config": {"logger": None}}), "config.logger is not an object"),
        (damaged({"config": {"logger": {"project": ["a"]}}}), "config.logger.project = ['a'] is"),
        (damaged({"config": {"logger": {"entity": 5}}}), "config.logger.entity = 5 is not text"),
        (damaged({"autoencoder": {"n_latents": float("inf"), "k": 4}}), "n_latents = inf is not"),
        (damaged({"autoencoder": {"n_latents": 0, "k": 4}}), "n_latents = 0 is not a whole"),
        (damaged({"autoencoder": {"n_latents": -3, "k": 4}}), "n_latents = -3 is not a whole"),
        (damaged({"autoencoder": {"n_latents": 8, "k": True}}), "k = True is not a whole number"),
        (damaged({"tokens_requested": 10**400}), "tokens_requested = 1000"),
        (damaged({"tokens_requested": None}), "tokens_requested = None"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_plan_is_named(
    sweep: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "run0" / "plan.json").write_text(text)
    out = sweep / "out.json"
    assert main([str(sweep), "--json", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"run0/plan.json is no plan of a run ({said}" in error
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("length", [129, 300, 5000])
def test_a_name_too_long_for_any_file_is_refused(
    tmp_path: Path, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["x" * length, "--json", str(tmp_path / "out.json")]) == 2
    assert f"has {length} characters, more than" in capsys.readouterr().err
