"""The choice of the next runs: against all subsets, against chance, and against what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricate import (
    PLANTED,
    Cell,
    demo_cells,
    fabricate_sweep,
    planted_table,
    points_of,
    record,
    write_record,
)
from planted_fit import D_MODEL, best_variance, planted_fit, small_problem, stored_as
from scipy.special import stdtrit

from analysis.command import write_json
from analysis.design import design_command
from analysis.errors import TableError
from analysis.fitting.fit import fit_law
from analysis.laws.joint import LatentsAndK, LatentsKTokensTilted
from analysis.laws.powers import OfLatentsAndTokens, TokensToConvergence
from analysis.planning.choice import choose, random_choice
from analysis.planning.compute import Convention
from analysis.planning.cost import FlopsCost, measured_cost
from analysis.planning.design import NewRun, RunDesign, candidate_grid, design_runs
from analysis.planning.stored import of_fitted
from analysis.planning.sweep_file import Cell as SweepCell
from analysis.planning.sweep_file import cells_of, sweep_text, write_sweep
from analysis.records.load import load_runs
from analysis.study.fitted import to_json

COST = FlopsCost(Convention("dense", D_MODEL))
TARGET = points_of([Cell(16384, 32, 4_000_000)])
CANDIDATES = candidate_grid((512, 2048, 8192), (8, 32, 64), (250e3, 1e6, 4e6))


def test_the_choice_is_the_best_of_all_subsets() -> None:
    excess = []
    for seed in range(30):
        problem = small_problem(seed)
        chosen = choose(problem)
        assert chosen.spent <= problem.budget * (1 + 1e-9)
        assert max(np.bincount(chosen.order)) <= problem.limit
        excess.append(chosen.variances[-1] / best_variance(problem) - 1)
    assert min(excess) > -1e-9
    assert max(excess) < 0.02
    assert np.mean(np.array(excess) < 1e-9) > 0.9


@pytest.mark.parametrize("seed", [28, 39, 41])
def test_no_exchange_of_one_run_helps(seed: int) -> None:
    """Of problems in which greedy choices alone stop 1 to 2% above what exchange finds."""
    problem = small_problem(seed, 40)
    chosen = choose(problem)
    counts = np.bincount(chosen.order, minlength=len(problem.cost_J))
    steps = np.eye(len(counts), dtype=np.int64)
    others = [counts - gone + new for gone in steps[counts > 0] for new in steps]
    paid = [
        other
        for other in others
        if other.max() <= problem.limit and other @ problem.cost_J <= problem.budget
    ]
    assert len(paid) > 20
    assert min(map(problem.variance, paid)) >= chosen.variances[-1] * (1 - 1e-9)


def test_chance_does_worse() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for seed in range(30):
        problem = small_problem(seed)
        counts = [random_choice(problem, rng) for _ in range(20)]
        assert all(np.dot(c, problem.cost_J) <= problem.budget * (1 + 1e-9) for c in counts)
        assert all(c.max() <= problem.limit for c in counts)
        blind = [problem.variance(c) for c in counts]
        best = choose(problem).variances[-1]
        assert best <= min(blind) * 1.02
        ratios.append(np.median(blind) / best)
    assert np.median(ratios) > 1.2


def test_the_variance_is_that_of_regression() -> None:
    """(1 + X'X)^-1 at the targets, whatever the order of buying."""
    problem = small_problem(3)
    chosen = choose(problem)
    x = problem.candidates_JP[list(chosen.order)]
    after = np.linalg.inv(np.eye(x.shape[1]) + x.T @ x)
    expected = np.mean(np.einsum("tp,pq,tq->t", problem.targets_TP, after, problem.targets_TP))
    assert chosen.variances[-1] == pytest.approx(expected, rel=1e-10)
    assert list(chosen.variances) == sorted(chosen.variances, reverse=True)


def _design(**changes: Any) -> RunDesign:
    asked: dict[str, Any] = {
        **{"stored": stored_as(PLANTED), "candidates": CANDIDATES, "targets": TARGET},
        **{"cost": COST, "budget": 2e14, "replicates": 2},
    }
    return design_runs(**{**asked, **changes})


def test_a_design_keeps_its_budget_and_says_what_it_buys() -> None:
    design = _design()
    assert design.cost <= 2e14
    assert design.sd_after < design.sd_blind < design.sd_before
    points = {axis: np.array([getattr(run, axis) for run in design.runs]) for axis in CANDIDATES}
    np.testing.assert_allclose([run.cost for run in design.runs], COST.of(points), rtol=1e-12)
    cells = [(run.n, run.k, run.tokens) for run in design.runs]
    assert max(cells.count(cell) for cell in cells) <= 2
    doubt = design.stored.doubt(TARGET)
    assert doubt is not None
    assert design.sd_before == pytest.approx(float(np.sqrt(doubt[0])), rel=1e-6)
    # Student's t of 30 degrees of freedom, and of those and the runs'.
    width = np.log(design.before.high / design.before.low)[0]
    assert width == pytest.approx(2 * 2.0422725 * design.sd_before, rel=1e-6)
    narrow = np.log(design.after.high / design.after.low)[0]
    freedom = 30 + len(design.runs)
    assert narrow == pytest.approx(2 * stdtrit(freedom, 0.975) * design.sd_after, rel=1e-6)


def test_more_budget_more_replicates_and_nearer_targets_help() -> None:
    assert _design(budget=4e14).sd_after < _design().sd_after
    assert _design(replicates=4).sd_after <= _design().sd_after
    twice = {axis: np.repeat(values, 2) for axis, values in TARGET.items()}
    assert _design(targets=twice).sd_after == pytest.approx(_design().sd_after, rel=1e-9)


def test_after_the_runs_the_fit_knows_what_was_expected() -> None:
    """Trained and fitted again, runs leave the doubt that the design foretold."""
    stored = of_fitted(planted_fit(), D_MODEL)
    design = _design(stored=stored)
    new = [Cell(round(r.n), round(r.k), round(r.tokens)) for r in design.runs]
    table = planted_table(PLANTED, [*demo_cells(), *new], noise=0.01)
    again = fit_law(LatentsKTokensTilted, table)
    value, jacobian = again.design(TARGET).value_and_jacobian(again.centered)
    information = again.jacobian.T @ again.jacobian
    error = 0.01 * np.sqrt(jacobian @ np.linalg.inv(information) @ jacobian.T)[0, 0]
    expected = design.sd_after * 0.01 / np.sqrt(stored.variance)
    assert error == pytest.approx(expected, rel=0.25)
    assert error < 0.8 * design.sd_before
    assert np.isfinite(value).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 1e9}, "buys no candidate that helps: the cheapest"),
        ({"replicates": 0}, "--replicates 1 or more"),
        ({"stored": stored_as(PLANTED, covariance=None)}, "has no covariance"),
        ({"stored": stored_as(PLANTED, variance=0.0)}, "fits its runs exactly"),
        ({"targets": {"n": np.ones(1), "k": np.ones(1)}}, "tokens is missing"),
        ({"stored": stored_as(TokensToConvergence(1e6, 0.6, 1024.0))}, "predicts no loss"),
    ],
    ids=["budget", "replicates", "covariance", "variance", "axis", "response"],
)
def test_what_cannot_be_designed_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        _design(**change)


def test_a_law_of_one_k_takes_candidates_of_that_k_only() -> None:
    law = OfLatentsAndTokens(E=0.05, A=4.0, a=0.35, B=40.0, b=0.45)
    ranges = {"n": (256.0, 4096.0), "k": (32.0, 32.0), "tokens": (1e5, 1e6)}
    stored, target = stored_as(law, ranges=ranges), {a: TARGET[a] for a in ("n", "tokens")}
    with pytest.raises(TableError, match="fitted at k = 32 only"):
        _design(stored=stored, targets=target)
    only = candidate_grid((512, 2048), (32,), (250e3, 1e6))
    assert _design(stored=stored, targets=target, candidates=only).sd_after > 0


def test_candidates_keep_to_the_share_of_k() -> None:
    grid = candidate_grid((128, 1024), (8, 64), (1e6,))
    assert list(zip(grid["n"], grid["k"], strict=True)) == [(128, 8), (1024, 8), (1024, 64)]
    assert len(candidate_grid((128, 1024), (8, 64), (1e6,), 1.0)["n"]) == 4
    with pytest.raises(TableError, match=r"no candidate has k at most 0\.0625 n"):
        candidate_grid((128,), (64,), (1e6,))
    with pytest.raises(TableError, match="more than 2000"):
        candidate_grid(range(10_000, 10_100), range(1, 60), (1e6,))


def _timed(folder: Path, seconds: Any, n_runs: int = 12) -> pd.DataFrame:
    for cell in demo_cells()[:n_runs]:
        write_record(folder, record(cell, 0.3 + 1e-6 * cell.tokens / cell.n, wall_s=seconds(cell)))
    return load_runs(folder)


def test_measured_costs_are_those_of_the_runs(tmp_path: Path) -> None:
    def seconds(cell: Cell) -> float:
        return 2.0 + cell.tokens * (1e-6 + 4e-9 * cell.n + 2e-8 * cell.k)

    cost = measured_cost(_timed(tmp_path, seconds))
    assert cost.rms_error < 1e-3  # budgets in whole batches
    expected = seconds(Cell(16384, 32, 4_000_000))
    assert cost.of(TARGET)[0] == pytest.approx(expected, rel=2e-3)


def test_cores_count(tmp_path: Path) -> None:
    frame = _timed(tmp_path, lambda cell: 1e-5 * cell.tokens)
    double = frame.assign(threads=2, mesh=[[2, 1]] * len(frame))
    one, four = (measured_cost(f).of(TARGET)[0] for f in (frame, double))
    assert four == pytest.approx(4 * one, rel=1e-9)


def test_costs_need_measured_runs(tmp_path: Path) -> None:
    frame = _timed(tmp_path, lambda cell: 1.0, n_runs=3)
    with pytest.raises(TableError, match="3 runs say how long they took"):
        measured_cost(frame)


def test_new_runs_take_seeds_that_are_free(tmp_path: Path) -> None:
    design = _design(budget=4e14, replicates=3)
    alone = cells_of(design.runs)
    assert len(set(alone)) == len(alone)
    first = alone[0]
    cell = Cell(first.n_latents, first.k, first.tokens)
    write_record(tmp_path, record(cell, 0.3, seed=first.seed))
    beside = cells_of(design.runs, load_runs(tmp_path))
    assert first not in beside
    assert sorted(c.seed for c in beside if c.line().startswith(first.line()[:-8]))[0] == 1
    assert all(cell.seed >= 7 for cell in cells_of(design.runs, first_seed=7))


def test_a_cells_runs_keep_their_seeds_whatever_became_of_them(tmp_path: Path) -> None:
    """Done and dead, broken off at half its tokens, or planned only: each is a run of its seed."""
    cell = Cell(512, 8, 1_000_000)
    dead = {"dead_fraction": 0.9, "silent_fraction_eval": 0.9}
    write_record(tmp_path, record(cell, 0.3, run_id="a", seed=0, **dead))
    broken = {"status": "diverged", "tokens": 400_000, "normalized_mse": None}
    write_record(tmp_path, record(cell, 0.31, run_id="b", seed=1, **broken))
    plan = {
        **{"autoencoder": {"n_latents": 512, "k": 8}, "tokens_requested": 1_000_000},
        "train": {"seed": 2},
    }
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "plan.json").write_text(json.dumps(plan))
    write_record(tmp_path, record(Cell(1024, 8, 1_000_000), 0.29, run_id="d"))
    unreadable = write_record(tmp_path, {**record(cell, 0.3, run_id="e"), "schema_version": "x"})
    (unreadable / "plan.json").write_text("[" * 100_000)  # names no cell, and is no end of all
    there = load_runs(tmp_path, allow="rejected")
    assert (there["excluded"] != "").sum() == 4
    new = [NewRun(512.0, 8.0, 1e6, 1.0, 0.1), NewRun(1024.0, 8.0, 1e6, 1.0, 0.1)]
    assert [c.seed for c in cells_of(new, there)] == [3, 1]


CELLS = [SweepCell(128, 4, 10_240, 0), SweepCell(128, 4, 10_240, 1), SweepCell(256, 8, 20_480, 0)]
WORDS = {"question": "q", "cost": "1", "feeds": "f"}


def test_sweep_files_of_other_hands_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "next.yaml"
    text = sweep_text(CELLS, name="next", like=None, **WORDS)
    write_sweep(path, text)
    write_sweep(path, text)  # its own it may replace
    assert path.read_text() == text
    path.write_text("# @package _global_\n")
    with pytest.raises(TableError, match="was not written by this command"):
        write_sweep(path, text)
    for bad in (tmp_path / "next.yml", tmp_path / "-x.yaml"):
        with pytest.raises(TableError, match=r"end it in NAME\.yaml"):
            write_sweep(bad, text)
    with pytest.raises(TableError, match="cannot write"):
        write_sweep(tmp_path / "none" / "next.yaml", text)
    with pytest.raises(TableError, match="--like 'a b' is no name"):
        sweep_text(CELLS, name=None, like="a b", **WORDS)


def _stored_file(tmp_path: Path) -> Path:
    path = tmp_path / "fit.json"
    write_json(path, to_json(planted_fit()))
    return path


ASKED = [
    *("--target", "n_latents=16384,k=32,tokens=4M", "--n", "512,2048,8192", "--k", "8,32,64"),
    *("--tokens", "250k,1M,4M", "--d-model", "576"),
]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweeps").mkdir()
    out, sweep = tmp_path / "design.json", tmp_path / "sweeps" / "next.yaml"
    words = [str(_stored_file(tmp_path)), *ASKED, "--budget-flops", "2e14", "--replicates", "2"]
    assert design_command([*words, "--sweep", str(sweep), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"--config-dir {tmp_path} sweeps=next" in printed
    written = json.loads(out.read_text())
    text = sweep.read_text()
    assert text.count("n_latents: ") == len(written["runs"]) > 1
    assert f"# Runs:     {len(written['runs'])}\n" in text
    assert "sweep_name: next\n" in text
    assert written["sd_after"] < written["sd_blind"] < written["sd_before"]
    assert sum(run["cost"] for run in written["runs"]) == pytest.approx(written["cost"])
    before, after = (written["targets"][0][f"law_ci95_{when}"] for when in ("before", "after"))
    assert before[0] < after[0] < written["targets"][0]["loss"] < after[1] < before[1]


def test_the_command_prices_by_measured_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = fabricate_sweep(tmp_path / "runs", demo_cells())
    words = [str(_stored_file(tmp_path)), *ASKED, "--runs", str(runs), "--budget-core-hours", "1"]
    assert design_command(words) == 0
    printed = capsys.readouterr().out
    assert "of 3600 core-seconds" in printed
    assert f"cost as {len(demo_cells())} runs took it" in printed


def test_the_command_says_where_existing_runs_are_unknown_and_counts_the_diverged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(_stored_file(tmp_path)), *ASKED, "--budget-flops", "2e14", "--like", "demo"]
    assert design_command(words) == 0
    assert "runs that exist in demo are unknown" in capsys.readouterr().out
    broken = {"status": "diverged", "normalized_mse": None}
    for i, cell in enumerate(demo_cells()[:10]):
        write_record(tmp_path / "runs", record(cell, 0.3 + 0.01 * i, **(broken if i < 5 else {})))
    assert design_command([*words, "--runs", str(tmp_path / "runs")]) == 0
    assert "are unknown" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget-flops", "1e3"], "buys no candidate that helps"),
        (["--budget-core-hours", "1"], "needs --runs SWEEP"),
        (["--budget-flops", "1e15", "--target", "n=3,k=3"], "name different axes"),
        (["--budget-flops", "1e15", "--tokens", "1.5"], "1.5 is no whole number"),
        (["--budget-flops", "1e15", "--most-k-share", "1e-9"], "no candidate has k"),
        (["--budget-flops", "-1"], "--budget-flops='-1' is no number above 0"),
        (["--budget-flops", "2e14", "--like", "none"], "--like none is no sweep of sweeps/"),
        (["--budget-flops", "2e14", "--like", "next"], "which cannot be like itself"),
        (["--budget-flops", "2e14", "--first-seed", "-1"], "--first-seed -1 is no seed"),
        (["--budget-flops", "2e14", "--first-seed", str(2**31)], "is no seed"),
        (["--budget-flops", "2e14", "--replicates", "101"], "give 1 to 100"),
        (["--budget-flops", "2e14", "--d-model", "0"], "--d-model 0 is no width"),
        (["--budget-flops", "2e14", "--name", "a b"], "--name 'a b' is no name"),
        (["--budget-flops", "2e14", "--sweep", "none/next.yaml"], "cannot write"),
        (["--budget-flops", "2e14", "--json", "none/x.json"], "cannot write"),
        (["--budget-flops", "2e14", "--json", "x" * 256], "is no usable path (File name too long)"),
    ],
)
def test_the_command_refuses_and_writes_nothing(
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits = str(_stored_file(tmp_path))
    monkeypatch.chdir(tmp_path)
    asked = [fits, *ASKED, "--json", "design.json", "--sweep", "next.yaml", *words]
    assert design_command(asked) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["fit.json"]


def test_a_sweep_file_that_is_no_text_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, out = tmp_path / "next.yaml", tmp_path / "design.json"
    sweep.write_bytes(b"\xff\xfe")
    words = [str(_stored_file(tmp_path)), *ASKED, "--budget-flops", "2e14"]
    assert design_command([*words, "--sweep", str(sweep), "--json", str(out)]) == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert sweep.read_bytes() == b"\xff\xfe"
    assert not out.exists()


def test_a_target_over_two_lines_stays_in_the_comment(tmp_path: Path) -> None:
    sweep = tmp_path / "next.yaml"
    asked = ["n_latents=16384,k=32,\ntokens=4M" if "=" in word else word for word in ASKED]
    words = [str(_stored_file(tmp_path)), *asked, "--budget-flops", "2e14", "--sweep", str(sweep)]
    assert design_command(words) == 0
    assert "prediction at n_latents=16384, k=32, tokens=4M?\n" in sweep.read_text()


def test_laws_without_tokens_are_designed_at_their_budget() -> None:
    law = LatentsAndK(**{name: PLANTED.parameters[name] for name in LatentsAndK.parameter_names})
    ranges = {"n": (256.0, 4096.0), "k": (4.0, 64.0), "tokens": (1e6, 1e6)}
    stored, target = stored_as(law, ranges=ranges), {a: TARGET[a] for a in ("n", "k")}
    with pytest.raises(TableError, match="fitted at tokens = 1M only"):
        _design(stored=stored, targets=target)
    only = candidate_grid((512, 2048), (8, 32), (1e6,))
    assert {run.tokens for run in _design(stored=stored, targets=target, candidates=only).runs} == {
        1e6
    }
