"""Sign runs of residuals: found where a law bends wrongly, at its level where it is right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fabricate import PLANTED, Cell, planted_table
from gpt4 import gpt4_table

from analysis.fitting.fit import Fit, fit_law
from analysis.judgement.patterns import residual_maps, sign_runs
from analysis.laws.joint import LatentsAndK, LatentsKTokens, LatentsKTokensTilted
from analysis.records.table import RunTable

CELLS = [
    Cell(n, k, tokens)
    for n in (256, 512, 1024, 2048, 4096)
    for k in (4, 8, 16, 32, 64)
    for tokens in (250_000, 500_000, 1_000_000)
]


def _fit(law=LatentsKTokensTilted, noise: float = 0.005, seed: int = 0) -> Fit:
    return fit_law(law, planted_table(PLANTED, CELLS, noise, seed))


def test_a_missing_k_term_runs_along_n() -> None:
    found = {runs.axis: runs for runs in sign_runs(_fit(LatentsKTokens, noise=0.0005))}
    assert list(found) == ["n", "k", "tokens"]
    assert found["n"].found
    assert found["n"].message.startswith("Along n the law misses in the same direction")
    assert found["tokens"].message.startswith("Along tokens the law misses in both directions")
    assert found["n"].n_pairs == 60
    assert found["tokens"].n_pairs == 50


def test_a_right_law_is_accused_no_more_often_than_stated() -> None:
    """Residuals of fits to noise: the first-order theory draws them, so many draws are cheap."""
    fit = _fit()
    basis = np.linalg.qr(fit.jacobian)[0]
    rng = np.random.default_rng(5)
    p = {"n": [], "k": [], "tokens": []}
    for _ in range(25):
        errors = rng.standard_normal(len(CELLS))
        noise = replace(fit, residuals=errors - basis @ (basis.T @ errors))
        for runs in sign_runs(noise):
            p[runs.axis].append(runs.p)
    for values in p.values():
        assert np.mean(np.array(values) < 0.2) <= 0.44  # 0.2, three Monte-Carlo errors above
        assert np.mean(np.array(values) < 0.5) >= 0.2  # and no test that never fires
    assert not any(runs.found for runs in sign_runs(fit))


def test_counting_by_hand() -> None:
    fit = _fit()
    signs = np.array([1.0 if cell.n <= 1024 else -1.0 for cell in CELLS])
    along = {runs.axis: runs for runs in sign_runs(replace(fit, residuals=0.01 * signs))}
    assert (along["n"].n_same, along["n"].n_pairs) == (45, 60)  # one change in each of 15 rows
    assert along["k"].n_same == along["k"].n_pairs == 60
    assert along["n"].ends == (pytest.approx(0.01), pytest.approx(-0.01))
    assert along["k"].found
    assert "runs of one n share an error" in along["k"].message
    flipping = np.array([1.0 if CELLS.index(cell) % 2 else -1.0 for cell in CELLS])
    never = {runs.axis: runs for runs in sign_runs(replace(fit, residuals=flipping))}
    assert never["tokens"].n_same == 0
    assert never["tokens"].p == 1.0


def test_seeds_are_averaged_and_few_pairs_are_not_judged() -> None:
    twice = [*CELLS, *CELLS]
    table = planted_table(PLANTED, twice, 0.005, seeds=[0] * 75 + [1] * 75)
    assert [runs.n_pairs for runs in sign_runs(fit_law(LatentsKTokens, table))] == [60, 60, 50]
    six = [(256, 4), (1024, 8), (4096, 16), (256, 8), (1024, 16), (4096, 4)]
    few = planted_table(PLANTED, [Cell(n, k, 1000) for n, k in six] * 2, 0.005, seeds=range(12))
    judged = {runs.axis: runs for runs in sign_runs(fit_law(LatentsAndK, few))}
    assert judged["n"].p is None
    assert "cannot be judged" in judged["n"].message
    assert not judged["n"].found


def test_the_map_holds_every_residual() -> None:
    cells = [c for c in CELLS if c.k <= c.n // 16]
    fit = fit_law(LatentsKTokens, planted_table(PLANTED, cells, 0.005))
    maps = residual_maps(fit)
    assert [m.title for m in maps] == ["D = 250k", "D = 500k", "D = 1M"]
    assert maps[0].values.shape == (5, 5)
    for row, cell in enumerate(cells):
        found = next(m for m in maps if m.budget == cell.tokens)
        i, j = np.flatnonzero(found.n == cell.n)[0], np.flatnonzero(found.k == cell.k)[0]
        assert found.values[i, j] == fit.residuals[row]
    assert np.isnan(maps[0].values[0, 4])  # n = 256 with k = 64 was not trained
    assert maps[0].json()["residual_log"][0][4] is None
    assert sum(np.isfinite(m.values).sum() for m in maps) == len(cells)


def test_the_papers_points() -> None:
    fit = fit_law(LatentsAndK, gpt4_table())
    (only,) = residual_maps(fit)
    assert only.title == "all runs"
    assert only.values.shape == (9, 5)
    assert [runs.axis for runs in sign_runs(fit)] == ["n", "k"]


def test_subject_models_are_cells_of_their_own() -> None:
    """Residuals of opposite sign on two subjects: averaged over them, nothing would be left."""
    fit = _fit(LatentsKTokens)
    table, sign = fit.table, np.repeat([1.0, -1.0], len(CELLS))
    points = {axis: np.tile(values, 2) for axis, values in table.points.items()}
    points["subject"] = np.where(sign > 0, 1e6, 1e8)
    both = RunTable(points, np.tile(table.loss, 2), (*"ab",) * len(CELLS), "loss", (0,) * len(sign))
    found = replace(fit, table=both, residuals=0.01 * sign, jacobian=np.tile(fit.jacobian, (2, 1)))
    along = {runs.axis: runs for runs in sign_runs(found)}
    assert (along["n"].n_same, along["n"].n_pairs) == (120, 120)
    maps = residual_maps(found)
    assert [m.title for m in maps[:2]] == ["D = 250k, S = 1M", "D = 250k, S = 100M"]
    assert [m.json()["subject"] for m in maps] == [1e6, 1e8] * 3
    for part in maps:
        np.testing.assert_allclose(part.values, 0.01 if part.subject == 1e6 else -0.01)


def test_signs_of_rounding_are_not_judged() -> None:
    assert [runs.p for runs in sign_runs(_fit(noise=0.0))] == [None, None, None]


def test_budgets_that_grow_with_n_are_matched_by_their_step() -> None:
    sizes = (256, 512, 1024, 2048, 4096)
    scaled = [Cell(n, k, int(n**1.7 * d)) for n in sizes for k in (4, 8, 16) for d in (9, 36, 144)]
    fit = fit_law(LatentsKTokensTilted, planted_table(PLANTED, scaled, 0.005))
    signs = np.array([-1.0 if i % 3 == 0 else 1.0 for i in range(len(scaled))])  # of the shortest
    along = {runs.axis: runs for runs in sign_runs(replace(fit, residuals=0.01 * signs))}
    assert (along["n"].n_same, along["n"].n_pairs) == (36, 36)
    assert (along["tokens"].n_same, along["tokens"].n_pairs) == (15, 30)
