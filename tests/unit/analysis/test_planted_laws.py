"""Fits of losses made from a known law: is the law found again, and are failures seen?"""

from __future__ import annotations

import numpy as np
import pytest
from fabricate import PLANTED, Cell, demo_cells, planted_table
from scipy import stats

from analysis.errors import TableError
from analysis.fitting.fit import fit_law
from analysis.judgement.cautions import cautions
from analysis.laws.joint import (
    LatentsAndK,
    LatentsKPlusTokens,
    LatentsKTokens,
    LatentsKTokensTilted,
    Law,
)
from analysis.records.table import RunTable
from analysis.study.fitted import fit_table

NO_TILT = LatentsKTokens(
    **{name: value for name, value in vars(PLANTED).items() if name not in ("u", "k0")}
)
LIMIT = LatentsAndK(
    **{name: PLANTED.parameters[name] for name in LatentsAndK.parameter_names},
)
ADDITIVE = LatentsKPlusTokens(**LIMIT.parameters, tau=1.0, b=0.35, c=0.5)
ONE_BUDGET = [Cell(n, k, 10**6) for n in (512, 1024, 2048, 4096, 8192) for k in (4, 8, 16, 32)]


CASES = pytest.mark.parametrize(
    ("law", "cells"),
    [(LIMIT, ONE_BUDGET), *((law, demo_cells()) for law in (NO_TILT, PLANTED, ADDITIVE))],
    ids=["l_nk", "l_nkd", "l_nkdu", "l_nkd_additive"],
)


@CASES
def test_exact_losses_give_the_exact_law(law: Law, cells: list[Cell]) -> None:
    fit = fit_law(type(law), planted_table(law, cells, noise=0.0), {"n": 1024.0, "k": 16.0})
    for name, value in law.parameters.items():
        assert fit.law.parameters[name] == pytest.approx(value, rel=1e-5)
    assert all(start.is_best for start in fit.starts)


@CASES
@pytest.mark.parametrize("seed", range(5))
def test_one_percent_noise_leaves_the_truth_within_the_doubt(
    law: Law, cells: list[Cell], seed: int
) -> None:
    table = planted_table(law, cells, noise=0.01, seed=seed)
    fit = fit_law(type(law), table, {"n": 1024.0, "k": 16.0})
    n_parameters, freedom = len(law.parameters), fit.degrees_of_freedom
    least, true = 2 * fit.half_sum_of_squares, _squares_of(law, table)
    # Likelihood ratio, which holds where single parameters are far from linear: 15 draws, of
    # which one in 1,500 would fail for a right fit.
    ratio = (true - least) / n_parameters / fit.variance
    assert 0 <= ratio < stats.f.ppf(1 - 1e-4, n_parameters, freedom)
    assert stats.chi2.cdf(least / 0.01**2, freedom) == pytest.approx(0.5, abs=0.4999)
    assert least <= 2 * min(s.half_sum_of_squares for s in fit.starts) * (1 + 1e-9)
    truth = law.log_predict(table.points)
    assert np.abs(fit.log_predict(table.points) - truth).max() < 0.02


def _squares_of(law: Law, table: RunTable) -> float:
    return float(np.sum((table.log_loss - law.log_predict(table.points)) ** 2))


def test_recovered_parameters_are_near_the_planted_ones() -> None:
    """Over 20 planted sweeps with 1 % noise, the median of each parameter is the planted value."""
    tables = [planted_table(PLANTED, demo_cells(), noise=0.01, seed=seed) for seed in range(20)]
    fits = [fit_law(LatentsKTokensTilted, t, {"n": 1024.0, "k": 16.0}).law for t in tables]
    for name, value in PLANTED.parameters.items():
        found = [fit.parameters[name] for fit in fits]
        spread = np.std(found) / np.sqrt(len(found))
        assert np.median(found) == pytest.approx(value, abs=4 * 1.25 * spread)


def test_the_law_without_u_misfits_runs_that_have_it() -> None:
    table = planted_table(PLANTED, demo_cells(), noise=0.002)
    plain, tilted = (fit_law(law, table) for law in (LatentsKTokens, LatentsKTokensTilted))
    assert plain.rms_log_residual > 2 * tilted.rms_log_residual


def test_the_additive_law_and_its_rival_each_misfit_the_runs_of_the_other() -> None:
    for truth, rival in ((ADDITIVE, LatentsKTokens), (NO_TILT, LatentsKPlusTokens)):
        table = planted_table(truth, demo_cells(), noise=0.001)
        right, wrong = (fit_law(law, table) for law in (type(truth), rival))
        assert wrong.rms_log_residual > 1.5 * right.rms_log_residual


def test_a_fixed_budget_hides_under_training() -> None:
    """The fit looks fine, and its floor is not the floor: why not_converged is a warning."""
    cells = [c for c in demo_cells() if c.tokens == 500_000]
    every_budget = planted_table(PLANTED, demo_cells(), noise=0.001)
    table = planted_table(PLANTED, cells, noise=0.001)
    fitted = fit_table(LatentsAndK, table, n_bootstrap=0, context=every_budget)
    assert fitted.fit.rms_log_residual < 0.01
    floor, true_floor = (
        np.exp(p["zeta"] + p["eta"] * np.log(16))
        for p in (fitted.law.parameters, PLANTED.parameters)
    )
    assert floor > 1.15 * true_floor
    assert fitted.title == "L(n,k | D=500k)"
    assert "not_converged" in fitted.warnings


def test_long_ladders_count_as_converged() -> None:
    cells = [Cell(n, k, d) for n, k, _ in ONE_BUDGET for d in (4 * 10**9, 8 * 10**9)]
    everything = planted_table(PLANTED, cells, noise=0.0)
    table = everything.at_budget(8 * 10**9)
    fitted = fit_table(LatentsAndK, table, n_bootstrap=0, context=everything)
    assert "not_converged" not in fitted.warnings
    alone = fit_table(LatentsAndK, table, n_bootstrap=0)
    assert "no cell has a second budget" in alone.warnings["not_converged"]


def test_losses_without_a_floor_lose_a_rank_and_say_so() -> None:
    law = LatentsAndK(0.9, -0.2, -0.25, 0.0, -60.0, 0.0)
    fit = fit_law(LatentsAndK, planted_table(law, ONE_BUDGET, noise=0.0))
    assert not fit.full_rank or fit.law.parameters["zeta"] < -12
    found = cautions(fit, None, fit.table)
    assert {"rank_deficient", "floor_unidentified"} & set(found)
    np.testing.assert_allclose(fit.law.predict(fit.table.points), fit.table.loss, rtol=1e-6)


def test_loss_that_rises_with_tokens_is_a_warning() -> None:
    rising = LatentsKTokens(**{**vars(NO_TILT), "c": -0.3})
    fit = fit_law(LatentsKTokens, planted_table(rising, demo_cells(), noise=0.001))
    assert "wrong_sign" in cautions(fit, None, fit.table)


def _cells(*columns: tuple[int, int, int]) -> list[Cell]:
    return [Cell(*column) for column in columns]


GRID = [(n, k) for n in (256, 512, 1024, 2048) for k in (4, 8, 16)]
BAD_TABLES = {
    "too few runs": (LatentsAndK, _cells(*((n, k, 10**6) for n, k in GRID[:7])), "at least 8 runs"),
    "two levels of n": (
        LatentsAndK,
        _cells(*((n, k, 10**6) for n in (256, 512) for k in (4, 5, 6, 7, 8))),
        "3 levels of n",
    ),
    "two levels of k": (
        LatentsAndK,
        _cells(*((n, k, 10**6) for n in (256, 300, 400, 512) for k in (4, 8))),
        "3 levels of k",
    ),
    "k a function of n": (
        LatentsAndK,
        _cells(*((64 * i, 2 * i, 10**6) for i in range(2, 12))),
        "k is a function of n",
    ),
    "n a function of k": (
        LatentsAndK,
        _cells(*((256 * (k % 4 + 1), k, 10**6) for k in range(4, 16))),
        "n is a function of k",
    ),
    "mixed budgets": (
        LatentsAndK,
        _cells(*((n, k, d) for n, k in GRID for d in (10**5, 10**6))),
        "one token budget",
    ),
    "two budgets": (
        LatentsKTokens,
        _cells(*((n, k, d) for n, k in GRID for d in (10**5, 10**6))),
        "3 levels of tokens",
    ),
    "tokens a function of n": (
        LatentsKTokens,
        _cells(*((n, k, 1000 * n) for n, k in GRID)),
        "tokens is a function of n",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_cannot_determine_the_law_is_refused(case: str) -> None:
    law, cells, words = BAD_TABLES[case]
    with pytest.raises(TableError, match=words) as refusal:
        fit_law(law, planted_table(PLANTED, cells, noise=0.01))
    assert "\n" not in str(refusal.value)
