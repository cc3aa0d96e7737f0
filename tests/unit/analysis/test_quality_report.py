"""Quality in a sweep's report and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from planted_quality import SIZES, SPARSITIES, plant_quality

from analysis.errors import TableError
from analysis.quality.command import quality_command
from analysis.quality.found import AXES, quality
from analysis.records.load import load_runs
from analysis.report.plots.quality import against
from analysis.report.write import main

METRICS = {
    "downstream_kl": lambda n, k: 2.0 * n**-0.3 * k**-0.2,
    "probe_auc": lambda n, k: 0.6 + 0.01 * k,
    "density_dense": lambda n, k: 0.01,
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_quality(tmp_path_factory.mktemp("runs") / "planted", METRICS, noise=0.01)


def test_a_report_has_quality_where_runs_are_evaluated(sweep: Path) -> None:
    assert main([str(sweep), "--bootstrap", "0"]) == 0
    folder = sweep / "report"
    page = (folder / "index.html").read_text()
    assert "Quality beyond reconstruction" in page
    assert page.count("<figure>") >= 4
    assert (folder / "quality_n.png").exists()
    assert (folder / "quality_k.png").exists()
    found = json.loads((folder / "quality.json").read_text())["metrics"]
    assert set(found) == set(METRICS)
    kl = found["downstream_kl"]
    assert len(kl["runs"]) == 24
    low, high = kl["trends"]["n"]["ci95"]
    assert low <= kl["trends"]["n"]["per_doubling"] <= high < 0
    assert [law["holds"] for law in kl["laws"]] == [True]
    for path in sweep.glob("*/evaluation.json"):
        path.unlink()
    assert main([str(sweep), "--bootstrap", "0"]) == 0
    assert "Quality beyond" not in (folder / "index.html").read_text()
    assert not list(folder.glob("quality*"))


def test_the_command_prints_what_the_report_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = plant_quality(tmp_path / "planted", METRICS, noise=0.01)
    out = tmp_path / "quality.json"
    arguments = [str(sweep), "--json", str(out), "--figures", str(tmp_path / "figures")]
    assert quality_command(arguments) == 0
    printed = capsys.readouterr().out
    assert "24 runs at 1M tokens" in printed
    assert "9 better" in printed
    assert "stands its tests" in printed
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == [
        "quality_k.png",
        "quality_n.png",
    ]
    assert set(json.loads(out.read_text())["metrics"]) == set(METRICS)


def test_columns_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = plant_quality(tmp_path / "planted", METRICS)
    assert quality_command([str(sweep), "--columns", "probe_auc"]) == 0
    printed = capsys.readouterr().out
    assert "probe_auc" in printed
    assert "downstream_kl" not in printed
    assert quality_command([str(sweep), "--columns", "probe_acu"]) == 2
    assert "probe_acu" in capsys.readouterr().err


def test_runs_without_an_evaluation_are_told_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = plant_quality(tmp_path / "planted", {})
    assert quality_command([str(sweep)]) == 2
    assert "python -m scaling.evaluate" in capsys.readouterr().err


def test_a_metric_is_no_loss_and_the_message_says_where_to_go(tmp_path: Path) -> None:
    sweep = plant_quality(tmp_path / "planted", METRICS)
    with pytest.raises(TableError, match=r"python -m analysis\.quality"):
        load_runs(sweep, loss="downstream_kl")


def test_errors_and_baselines_stand_beside_the_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`shared` and `of_n` are the same for all runs of an n; `own` differs with k."""
    plants = {"shared": lambda n, k: 0.3, "of_n": lambda n, k: 20 / n, "own": lambda n, k: 0.1 + k}
    auc = {"far": lambda n, k: 9.0}
    baselines = {"downstream_kl": plants, "probe_auc": auc}
    sweep = plant_quality(tmp_path / "planted", METRICS, baselines=baselines)
    min(sweep.glob("*/evaluation.json")).unlink()  # not evaluated: no part of anything here
    out = tmp_path / "quality.json"
    assert quality_command([str(sweep), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "0.03 (documents)" in printed
    of_n = f"{20 / max(SIZES):.3g} to {20 / min(SIZES):.3g}"
    own = f"{0.1 + min(SPARSITIES):.3g} to {0.1 + max(SPARSITIES):.3g}"
    assert f"of_n {of_n}, own {own}, shared 0.3" in printed
    dense = next(line for line in printed.splitlines() if line.startswith("density_dense "))
    assert " none" in dense
    found = json.loads(out.read_text())["metrics"]
    assert found["downstream_kl"]["standard_error_of_a_run"] == 0.03
    assert found["density_dense"]["standard_error_of_a_run"] is None
    assert found["downstream_kl"]["baselines"]["shared"] == [0.3, 0.3]
    drawings = {axis: against(axis, quality(load_runs(sweep))) for axis in AXES}
    drawn = {axis: _dotted(figure) for axis, figure in drawings.items()}
    assert main([str(sweep), "--bootstrap", "0"]) == 0
    page = (sweep / "report" / "index.html").read_text()
    assert f"<td>of_n {of_n}, own {own}, shared 0.3</td>" in page
    assert "± of one run" in page
    assert drawn == {"n": {"shared", "of_n"}, "k": {"shared"}}  # far would leave the runs no room


def _dotted(figure: Figure | None) -> set[str]:
    assert figure is not None
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    lines = [line for axes in figure.axes for line in axes.lines if line.get_linestyle() == ":"]
    assert len(lines) == len(texts)
    return set(texts)
