from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fabricate import PLANTED, Cell, demo_cells, fabricate_sweep, record, write_record

from analysis.judgement.convergence import falling_pairs, ladders_at
from analysis.records.load import load_runs, runs_table
from analysis.report.write import main


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fabricate_sweep(tmp_path_factory.mktemp("runs") / "planted", demo_cells(), seed=3)
    failure = {"type": "OSError", "message": "<disk> & more", "traceback": None, "rank": 0}
    odd = Cell(4096, 8, 1_000_000)
    write_record(folder, record(odd, 0.3, run_id="broken", status="failed", error=failure))
    return folder


@pytest.fixture(scope="module")
def page(sweep: Path) -> str:
    assert main([str(sweep), "--bootstrap", "200"]) == 0
    return (sweep / "report" / "index.html").read_text()


@pytest.fixture(scope="module")
def fits(page: str, sweep: Path) -> dict:
    assert page
    return json.loads((sweep / "report" / "fits.json").read_text())


def _fit(fits: dict, title: str, rows: str) -> dict:
    return next(f for f in fits["fits"] if f["title"] == title and f["rows"] == rows)


def test_every_law_with_and_without_the_largest_n(fits: dict) -> None:
    found = [(fit["law"], fit["title"], fit["rows"]) for fit in fits["fits"]]
    assert found == [
        ("l_nkd", "L(n,k,D)", "runs with n < 4096"),
        ("l_nkd", "L(n,k,D)", "all runs"),
        ("l_nkdu", "L(n,k,D) with u", "runs with n < 4096"),
        ("l_nkdu", "L(n,k,D) with u", "all runs"),
        ("l_nkd_additive", "L(n,k,D) additive", "runs with n < 4096"),
        ("l_nkd_additive", "L(n,k,D) additive", "all runs"),
        ("l_nk", "L(n,k | D=500k)", "runs with n < 4096"),
        ("l_nk", "L(n,k | D=500k)", "all runs"),
        ("l_nk", "L(n,k | D=250k)", "runs with n < 2048"),
        ("l_nk", "L(n,k | D=250k)", "all runs"),
    ]
    refused = {(f["title"], f["rows"]) for f in fits["not_fitted"]}
    assert ("L(n,k | D=1M)", "all runs") in refused
    assert fits["headline"] == {"law": "l_nkdu", "title": "L(n,k,D) with u"}


def test_fits_are_those_of_the_planted_law(fits: dict) -> None:
    tested = _fit(fits, "L(n,k,D) with u", "runs with n < 4096")
    assert tested["holdout"]["n"] == 5
    assert tested["holdout"]["rms_log"] < 0.02
    assert tested["n_used"] == len(demo_cells()) - 5
    assert tested["dropped"] == [
        {"run": "broken", "reason": "status is failed (OSError: <disk> & more)"}
    ]
    everything = _fit(fits, "L(n,k,D) with u", "all runs")
    assert everything["holdout"] is None
    for name in ("gamma", "s", "c", "u"):
        low, high = everything["ci95"][name]
        assert low < PLANTED.parameters[name] < high
    one_budget = _fit(fits, "L(n,k | D=500k)", "all runs")
    assert "not_converged" in one_budget["warnings"]
    assert "17 of the 17 cells" in one_budget["warning_messages"]["not_converged"]


def test_cautions_are_of_the_runs_and_not_of_one_law(fits: dict) -> None:
    assert list(fits["cautions"]) == ["one_seed", "repeated_tokens"]
    assert fits["cautions"]["repeated_tokens"].count("3.81 epochs") == 1


def test_cost_and_provenance(fits: dict, sweep: Path) -> None:
    seconds = [c.n * c.tokens / 4e7 for c in demo_cells()]
    assert fits["cost"]["train_s"] == pytest.approx(sum(seconds))
    assert fits["cost"]["elapsed_s"] == pytest.approx(180)
    assert fits["cost"]["runs"] == len(demo_cells())
    assert fits["provenance"]["hosts"] == ["planted-host"]
    assert {"batch_tokens", "dead_treatment"} < {*fits["provenance"]["recipe"]}
    assert fits["provenance"]["versions"]["torch"] == ["2.13.0"]
    assert fits["provenance"]["subject_model"] == ["SmolLM2-135M"]


def test_the_page_is_self_contained(page: str) -> None:
    assert page.count("<svg") == 5
    # Nothing is fetched: every reference is to a part of the page itself.
    assert all(target.startswith("#") for target in re.findall(r'(?:href|src)="([^"]*)"', page))
    assert "<script" not in page
    assert "@import" not in page
    # One drawing for light and dark: ink is the page's text color, and nothing stays black.
    assert "currentColor" in page
    assert "#010203" not in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_says_what_a_reader_needs(page: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for words in (
        "May be used for: Predicting the loss of runs of this recipe between the cells that were "
        "trained (n 256 to 4096",
        "n beyond the trained ones: at n = 8192",
        "May not be used for: Any other budget",
        "not_converged: at 500k tokens",
        "status is failed (OSError: &lt;disk&gt; &amp; more)",
        f"{len(demo_cells())} of {len(demo_cells()) + 1} runs are used",
        "needs at least 3 levels of n",
        "planted-host",
        f"one_seed: all {len(demo_cells())} runs share one seed (0)",
        "repeated_tokens: ",
        "rms log error of 5 runs held out, n = 4096",
        "runs of 500k trained 499,968 tokens in whole batches",
        "an upper bound",
        "l_nkd_additive",
        "starts reached this optimum",
    ):
        assert words in text


def test_figures_are_files_too(page: str, sweep: Path) -> None:
    names = {path.name for path in (sweep / "report").iterdir()}
    drawings = (
        *("loss_against_n", "loss_against_tokens", "residuals", "residual_maps", "frontier"),
    )
    assert names == {
        "index.html",
        "fits.json",
        "parameters.csv",
        *(f"{name}.png" for name in drawings),
    }
    assert all(path.stat().st_size > 5000 for path in (sweep / "report").glob("*.png"))


def test_the_main_figure_names_what_it_is_of(page: str) -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert "Activations of SmolLM2-135M, after block 23" in texts
    assert "Sparse autoencoders at D = 500k tokens" in texts


def test_the_same_records_give_the_same_files(page: str, sweep: Path) -> None:
    before = (sweep / "report" / "fits.json").read_bytes()
    assert main([str(sweep), "--bootstrap", "200"]) == 0
    assert (sweep / "report" / "fits.json").read_bytes() == before
    assert (sweep / "report" / "index.html").read_text() == page


def test_what_is_printed(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep), "--bootstrap", "0"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"gamma +-0\.1\d+ +95% \[", printed)
    assert re.search(r"held out: 5 runs, rms log error \d\.\d\d%", printed)
    assert re.search(r"loss falls with n in \d+ of 37 adjacent pairs", printed)
    assert f"report: {sweep / 'report' / 'index.html'}" in printed


SMALL_SWEEPS = {
    "one run": [Cell(256, 4, 125_000)],
    "four runs": [Cell(n, k, 250_000) for n in (256, 512) for k in (4, 8)],
    "one n": [Cell(256, k, d) for k in (4, 8, 16) for d in (125_000, 250_000, 500_000)],
    "two k": [Cell(n, k, d) for n in (256, 512, 1024) for k in (4, 8) for d in (125_000, 250_000)],
    "one budget": [Cell(n, k, 250_000) for n in (256, 512, 1024, 2048) for k in (4, 8, 16)],
}


@pytest.mark.parametrize("case", SMALL_SWEEPS)
def test_small_sweeps_get_a_page_that_says_what_is_missing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = fabricate_sweep(tmp_path / "small", SMALL_SWEEPS[case])
    assert main([str(sweep), "--bootstrap", "100"]) == 0
    page = (sweep / "report" / "index.html").read_text()
    assert "Not fitted, and why" in page
    found = json.loads((sweep / "report" / "fits.json").read_text())
    assert len(found["fits"]) == (2 if case == "one budget" else 0)
    assert found["not_fitted"]
    printed = capsys.readouterr().out
    assert ("no law can be fitted yet" in printed) == (case != "one budget")


def test_unusable_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "none", tmp_path):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert len(error.strip().splitlines()) == 1


def test_analysis_needs_no_torch(sweep: Path) -> None:
    code = "import sys, analysis.report, analysis.command; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_falling_pairs_count_adjacent_levels_at_equal_others(tmp_path: Path) -> None:
    losses = {(256, 4): 0.5, (512, 4): 0.4, (1024, 4): 0.45, (256, 8): 0.3, (1024, 8): 0.2}
    for (n, k), loss in losses.items():
        write_record(tmp_path, record(Cell(n, k, 250_000), loss))
    write_record(tmp_path, record(Cell(512, 8, 500_000), 0.25))  # another budget: no pair
    table = runs_table(load_runs(tmp_path))
    along_n, along_k = falling_pairs(table, "n"), falling_pairs(table, "k")
    assert (along_n.n_falling, along_n.n_pairs) == (2, 3)
    assert (along_k.n_falling, along_k.n_pairs) == (2, 2)
    assert falling_pairs(table, "tokens").share is None


def test_ladders_judge_by_the_larger_budget_first(tmp_path: Path) -> None:
    for tokens, loss in ((250_000, 0.5), (500_000, 0.4), (1_000_000, 0.399)):
        write_record(tmp_path, record(Cell(256, 4, tokens), loss))
    write_record(tmp_path, record(Cell(512, 4, 500_000), 0.3))
    table = runs_table(load_runs(tmp_path))
    middle = ladders_at(500_000, table)
    np.testing.assert_allclose(middle.falls, [1 - 0.399 / 0.4])
    assert (middle.n_cells, middle.n_unsettled) == (2, 0)
    assert not middle.converged  # one cell has nothing to compare with
    low = ladders_at(250_000, table)
    np.testing.assert_allclose(low.falls, [1 - 0.4 / 0.5])
    assert low.n_unsettled == 1
    top = ladders_at(1_000_000, table)
    np.testing.assert_allclose(top.falls, [1 - 0.399 / 0.4])
    assert top.converged


def test_a_report_that_cannot_be_finished_leaves_the_old_one(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "index.html").write_text("OLD PAGE")

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("analysis.report.write.write_json", full_disk)
    assert main([str(sweep), "--bootstrap", "0", "--out", str(out)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["index.html"]
    assert (out / "index.html").read_text() == "OLD PAGE"


def test_figures_these_runs_do_not_have_are_removed(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "few", demo_cells()[:3])
    (sweep / "report").mkdir()
    (sweep / "report" / "residuals.png").write_text("of other runs")
    (sweep / "report" / "notes.txt").write_text("mine")
    assert main([str(sweep), "--bootstrap", "0"]) == 0
    names = {path.name for path in (sweep / "report").iterdir()}
    assert "residuals.png" not in names
    assert "notes.txt" in names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seed", "-1"), "--seed -1 is negative"),
        (("--out", "{file}/x"), "cannot write"),
        (("--bootstrap", "7"), "--bootstrap 7 is too few"),
        (("--clusters", "host"), "clusters 'host' are not known"),
    ],
)
def test_bad_options_are_refused_before_fitting(
    arguments: tuple[str, str],
    words: str,
    sweep: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("analysis.report.write.contents", None)  # calling it would be an error
    name, value = arguments
    assert main([str(sweep), name, value.format(file=tmp_path / "file")]) == 2
    assert words in capsys.readouterr().err


def test_text_of_records_is_no_formula(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for cell in demo_cells()[:3]:
        row = record(cell, 0.4 - cell.tokens / 1e7, subject_model="$x^{$", started_at="yesterday")
        write_record(sweep, row)
    assert main([str(sweep), "--bootstrap", "0"]) == 0
    assert "$x^{$" in (sweep / "report" / "index.html").read_text()
