"""Floors by profile likelihood, and tokens until a run is nearly at its limit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricate import PLANTED, demo_cells, planted_table
from gpt4 import POINTS, gpt4_table, with_losses
from scipy.optimize import brentq, least_squares
from scipy.special import stdtrit

from analysis.errors import TableError
from analysis.fit import fit_command
from analysis.fitting.fit import fit_law
from analysis.laws import LAWS
from analysis.laws.joint import LatentsAndK, LatentsKPlusTokens, LatentsKTokensTilted
from analysis.laws.powers import OfLatents, OfLatentsAndTokens
from analysis.records.table import RunTable
from analysis.study.fitted import fit_table
from analysis.uncertainty.budgets import tokens_to_reach
from analysis.uncertainty.profile import floor_interval

TRUTH = fit_law(LatentsAndK, gpt4_table()).law
CELLS = demo_cells()
NAMES = tuple(map(str, range(len(CELLS))))


def test_the_ends_are_where_the_fit_with_a_held_floor_is_worse_by_t_squared() -> None:
    """Against a fit of the plain formula with the floor put in by hand."""
    table, k = gpt4_table(), 32.0
    fit = fit_law(LatentsAndK, table)
    found = floor_interval(fit, {"k": k})
    p = fit.law.parameters
    assert found.floor == pytest.approx(np.exp(p["zeta"] + p["eta"] * np.log(k)), rel=1e-9)
    assert 0 < found.low < found.floor < found.high
    ln_n, ln_k = np.log(table.points["n"] / 2**15), np.log(table.points["k"] / k)

    def held(floor: float) -> float:
        def residuals(c: np.ndarray) -> np.ndarray:
            first = c[0] + c[1] * ln_k + c[2] * ln_n + c[3] * ln_k * ln_n
            return np.logaddexp(first, np.log(floor) + c[4] * ln_k) - table.log_loss

        start = [np.log(0.2), 0.0, -0.2, 0.0, p["eta"]]
        squares = least_squares(residuals, start, xtol=1e-14, ftol=1e-14, gtol=1e-14).cost * 2
        return (squares - 2 * fit.half_sum_of_squares) / fit.variance

    threshold = stdtrit(39, 0.975) ** 2
    for end in (found.low, found.high):
        assert held(end) == pytest.approx(threshold, rel=1e-3)


def test_without_a_floor_the_lower_end_is_zero() -> None:
    n, k = (v.ravel() for v in np.meshgrid(2.0 ** np.arange(8, 14), [4.0, 8.0, 16.0, 32.0]))
    points = {"n": n, "k": k, "tokens": np.full_like(n, 1e9)}
    bare = LAWS["l_nk_no_floor"](alpha=0.9, beta_k=-0.2, beta_n=-0.25, gamma=0.0)
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(n)))
    names = tuple(map(str, range(len(n))))
    table = RunTable(points, bare.predict(points) * noise, names, "loss", names)
    found = floor_interval(fit_law(LatentsAndK, table), {"k": 16.0})
    assert found.low == 0.0
    assert 0 < found.high < table.loss.min()


def test_a_robust_fits_interval_is_not_widened_by_outliers() -> None:
    table = gpt4_table()
    loss = TRUTH.predict(table.points) * np.exp(0.01 * np.random.default_rng(5).standard_normal(45))
    loss[[4, 33]] *= 1.4
    plain, huber = (
        floor_interval(fit_law(LatentsAndK, with_losses(table, loss), method=m), {"k": 64.0})
        for m in ("least_squares", "huber")
    )
    truth = np.exp(TRUTH.parameters["zeta"] + TRUTH.parameters["eta"] * np.log(64.0))
    assert huber.low <= truth <= huber.high
    assert np.log(huber.high / max(huber.low, 1e-3)) < np.log(plain.high / max(plain.low, 1e-3))


def test_nominal_coverage_on_the_papers_design() -> None:
    """30 tables: 95% with a standard error of 4%."""
    table, k = gpt4_table(), 128.0
    truth = np.exp(TRUTH.parameters["zeta"] + TRUTH.parameters["eta"] * np.log(k))
    hits = []
    for seed in range(30):
        noise = 0.01 * np.random.default_rng(seed).standard_normal(45)
        noisy = with_losses(table, TRUTH.predict(table.points) * np.exp(noise))
        found = floor_interval(fit_law(LatentsAndK, noisy), {"k": k})
        hits.append(found.low <= truth <= found.high)
    assert np.mean(hits) >= 0.85


def test_a_floor_that_is_one_number_needs_no_size() -> None:
    n = np.logspace(8, 16, 16, base=2)
    points = {"n": n, "k": np.full(16, 16.0)}
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(16))
    loss = OfLatents(0.15, 9.0, 0.5).predict(points) * noise
    table = RunTable(points, loss, tuple(map(str, range(16))), "loss", (0,) * 16)
    found = floor_interval(fit_law(OfLatents, table))
    assert found.low < 0.15 < found.high < 0.152
    assert found.at == {}


def test_the_command_gives_the_floor_at_each_k(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    table = ("--table", str(POINTS), "--bootstrap", "0", "--json", str(out), "--floors")
    assert fit_command(("--law", "l_nk", *table)) == 0
    assert "floor at k = 32: 0.1914, 95% [0.1634, 0.2185]" in capsys.readouterr().out
    floors = json.loads(out.read_text())["floors"]
    assert [floor["at"] for floor in floors] == [{"k": 2.0**i} for i in range(5, 10)]
    for floor in floors:
        assert 0 < floor["low"] < floor["floor"] < floor["high"]
    assert fit_command(("--law", "l_nk_constant_floor", *table)) == 0
    (only,) = json.loads(out.read_text())["floors"]
    assert only["at"] == {}
    assert fit_command(("--law", "l_nk_no_floor", *table)) == 0
    assert json.loads(out.read_text())["floors"] == []


def test_profiles_that_make_no_sense_are_refused() -> None:
    fit = fit_law(LatentsAndK, gpt4_table())
    with pytest.raises(TableError, match="depends on k"):
        floor_interval(fit)
    bare = fit_law(LAWS["l_nk_no_floor"], gpt4_table())
    with pytest.raises(TableError, match="has no floor"):
        floor_interval(bare, {"k": 32.0})


def _table(law) -> RunTable:
    return planted_table(law, CELLS, 0.005)


ADDITIVE = LatentsKPlusTokens(
    **{name: PLANTED.parameters[name] for name in LatentsKPlusTokens.parameter_names[:6]},
    **{"tau": 1.0, "b": 0.35, "c": 0.5},
)
ONE_K = OfLatentsAndTokens(E=0.1, A=4.0, a=0.5, B=120.0, b=0.5)


@pytest.mark.parametrize("truth", [PLANTED, ADDITIVE, ONE_K], ids=lambda law: law.name)
def test_at_that_budget_the_loss_is_that_much_above_its_limit(truth) -> None:
    table = _table(truth)
    if truth is ONE_K:
        points = {**table.points, "k": np.full(len(table), 16.0)}
        table = RunTable(points, table.loss, NAMES, "loss", NAMES)
    fitted = fit_table(type(truth), table, n_bootstrap=100)
    n = np.array([512.0, 4096.0])
    found = tokens_to_reach(fitted, n, 16.0, excess=0.1)
    points = {"n": n, "k": np.full(2, 16.0), "tokens": found.tokens}
    endless = {**points, "tokens": np.full(2, 1e300)}
    np.testing.assert_allclose(
        fitted.law.predict(points) / fitted.law.predict(endless), 1.1, rtol=1e-6
    )
    assert (found.low < found.tokens).all()
    assert (found.tokens < found.high).all()
    delta = tokens_to_reach(fit_table(type(truth), table, n_bootstrap=0), n, 16.0, excess=0.1)
    np.testing.assert_allclose(np.log(delta.tokens), np.log(found.tokens))
    np.testing.assert_allclose(
        np.log(delta.high / delta.low), np.log(found.high / found.low), rtol=0.7
    )


@pytest.mark.parametrize("truth", [PLANTED, ADDITIVE], ids=lambda law: law.name)
def test_without_refits_intervals_are_the_delta_methods_from_the_fits_own_doubt(truth) -> None:
    """Against differences of ln D* by each coefficient; the doubt is that of clusters if given."""
    n, k, excess = np.array([512.0, 4096.0]), 16.0, 0.1
    plain, shared = (
        fit_table(type(truth), _table(truth), n_bootstrap=0, clusters=by) for by in (None, "n")
    )
    fit = plain.fit

    def log_tokens(step: np.ndarray) -> np.ndarray:
        moved = replace(plain, fit=replace(fit, centered=fit.centered + step))
        return np.log(tokens_to_reach(moved, n, k, excess).tokens)

    steps = 1e-6 * np.eye(len(fit.centered))
    gradient = np.column_stack([(log_tokens(s) - log_tokens(-s)) / 2e-6 for s in steps])
    assert shared.clusters is not None
    sandwich = shared.clusters.covariance
    freedoms = (fit.degrees_of_freedom, 4)
    spreads = (fit.centered_covariance, sandwich.centered)
    for fitted, freedom, spread in zip((plain, shared), freedoms, spreads, strict=True):
        found = tokens_to_reach(fitted, n, k, excess)
        error = np.sqrt(np.einsum("np,pq,nq->n", gradient, spread, gradient))
        half = stdtrit(freedom, 0.975) * error
        np.testing.assert_allclose(np.log(found.high / found.tokens), half, rtol=1e-4)
        np.testing.assert_allclose(np.log(found.tokens / found.low), half, rtol=1e-4)


def test_where_tokens_may_not_help_a_budget_has_no_upper_end() -> None:
    noisy = planted_table(PLANTED, CELLS, 0.2)
    fitted = fit_table(LatentsKTokensTilted, noisy, n_bootstrap=0)
    low, high = fitted.ci95["c"]
    assert low <= 0 < fitted.law.parameters["c"] < high
    found = tokens_to_reach(fitted, 1024.0, 16.0, 0.1)
    assert 0 <= found.low < found.tokens < np.inf
    assert np.isinf(found.high).all()
    rising = LatentsKTokensTilted(**{**vars(PLANTED), "c": -0.3})
    worse = tokens_to_reach(
        fit_table(LatentsKTokensTilted, _table(rising), n_bootstrap=0), 1024, 16, 0.1
    )
    assert (worse.tokens, worse.low, worse.high) == (np.inf, 0.0, np.inf)


def test_budgets_hold_the_planted_one_and_grow_as_the_law_says() -> None:
    fitted = fit_table(LatentsKTokensTilted, _table(PLANTED), n_bootstrap=300)
    excess = 0.2
    found = tokens_to_reach(fitted, [1024.0, 4096.0], [16.0, 16.0], excess)
    planted = PLANTED.D0 * excess ** (-1 / PLANTED.c) * np.array([1.0, 4.0**PLANTED.s])
    assert ((found.low < planted) & (planted < found.high)).all()

    def over(log_tokens: float) -> float:
        points = {"n": np.array([1024.0]), "k": np.array([16.0]), "tokens": np.exp([log_tokens])}
        limit = fitted.law.predict({**points, "tokens": np.array([1e300])})
        return float(fitted.law.predict(points)[0] / limit[0]) - 1 - excess

    assert np.log(found.tokens[0]) == pytest.approx(brentq(over, 5, 40), rel=1e-9)


def test_budgets_that_make_no_sense_are_refused_and_no_help_from_tokens_is_infinite() -> None:
    fitted = fit_table(LatentsKTokensTilted, _table(PLANTED), n_bootstrap=0)
    with pytest.raises(TableError, match="excess 0 is not above 0"):
        tokens_to_reach(fitted, 1024, 16, 0.0)
    with pytest.raises(TableError, match="holds no tokens"):
        tokens_to_reach(fit_table(LatentsAndK, gpt4_table(), n_bootstrap=0), 1024, 16, 0.1)
    rising = LatentsKTokensTilted(**{**vars(PLANTED), "c": -0.3})
    worse = fit_table(LatentsKTokensTilted, _table(rising), n_bootstrap=100)
    assert np.isinf(tokens_to_reach(worse, 1024, 16, 0.1).tokens).all()
