"""Replicates against residuals: a wrong law is found, a right one no more often than stated."""

from __future__ import annotations

import numpy as np
import pytest
from fabricate import PLANTED, Cell, planted_table
from scipy.stats import bartlett, f_oneway

from analysis.fitting.fit import fit_law
from analysis.fitting.replicates import PureError, pure_error
from analysis.judgement.floors import floors
from analysis.judgement.lack_of_fit import lack_of_fit
from analysis.judgement.rivals import aicc
from analysis.laws.joint import LatentsAndK, LatentsKTokens, LatentsKTokensTilted
from analysis.records.table import RunTable

GRID = [Cell(n, k, 500_000) for n in (256, 512, 1024, 2048, 4096) for k in (4, 8, 16, 32)]
CENTER = [Cell(1024, 8, 500_000), Cell(512, 16, 500_000), Cell(2048, 8, 500_000)]
CELLS = [*GRID, *CENTER, *CENTER]
LADDERS = [
    Cell(n, k, tokens)
    for n in (256, 512, 1024, 2048)
    for k in (4, 16, 64)
    for tokens in (125_000, 500_000, 2_000_000)
]
TRUE_LNK = LatentsAndK(**{name: PLANTED.parameters[name] for name in LatentsAndK.parameter_names})


def _table(noise: float, seed: int, law=TRUE_LNK, cells=CELLS) -> RunTable:
    return planted_table(law, cells, noise, seed, seeds=range(len(cells)))


def test_pure_error_by_hand() -> None:
    table = _table(0.01, 0)
    pure = pure_error(table)
    assert pure is not None
    assert pure.freedoms.tolist() == [2.0, 2.0, 2.0]
    columns = np.array(list(CELLS))
    by_hand = []
    for cell in CENTER:
        logs = table.log_loss[(columns == np.array(cell)).all(axis=1)]
        by_hand.append(np.sum((logs - logs.mean()) ** 2))
    assert pure.variance == pytest.approx(sum(by_hand) / 6)
    assert pure.degrees_of_freedom == 6


def test_a_right_law_is_accused_as_often_as_the_level_says() -> None:
    values = [lack_of_fit(fit_law(LatentsAndK, _table(0.01, seed))).p for seed in range(60)]
    share = np.mean([p is not None and p < 0.1 for p in values])
    assert 0.0 < share <= 0.22  # 0.1 with a Monte-Carlo error of 0.04
    assert 0.3 <= np.mean(np.array(values, dtype=float) < 0.5) <= 0.7


def test_a_wrong_law_is_found_with_the_size_of_its_miss() -> None:
    """u = 0.2 is planted; the plain law cannot hold it, and seeds scatter by 0.1%."""
    cells = [*LADDERS, *LADDERS[::4]]
    table = _table(0.001, 1, PLANTED, cells)
    wrong = lack_of_fit(fit_law(LatentsKTokens, table))
    right = lack_of_fit(fit_law(LatentsKTokensTilted, table))
    assert wrong.found
    assert not right.found
    assert wrong.sd_law is not None
    assert wrong.sd_law > 5 * (wrong.sd_pure or 1.0)
    assert wrong.sd_pure == pytest.approx(0.001, rel=0.6)
    assert "misses by more than runs scatter" in wrong.message
    assert "No lack of fit" in right.message


def test_the_f_value_of_a_law_with_only_levels_is_that_of_anova() -> None:
    """Of groups alone, lack of fit is one-way analysis of variance about a common mean."""
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((4, 5))
    pure = PureError(((samples - samples.mean(1, keepdims=True)) ** 2).sum(1), np.full(4, 4.0))
    between = 5 * ((samples.mean(1) - samples.mean()) ** 2).sum() / 3
    assert between / pure.variance == pytest.approx(f_oneway(*samples).statistic)


def test_unequal_spreads_cost_degrees_of_freedom() -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((3, 6)) * np.array([[1.0], [1.0], [20.0]])
    pure = PureError(((samples - samples.mean(1, keepdims=True)) ** 2).sum(1), np.full(3, 5.0))
    assert bartlett(*samples).pvalue < 0.01
    assert not pure.equal
    assert 5.0 <= pure.degrees_of_freedom < 5.5  # one cell holds nearly all of the variance
    equal = PureError(np.array([1.0, 2.0, 1.5]), np.full(3, 5.0))
    assert equal.equal
    assert equal.degrees_of_freedom == 15.0


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_the_test_of_equal_spreads_is_bartletts(scale: float) -> None:
    samples = [np.random.default_rng(i).standard_normal(4 + i) * scale**i for i in range(4)]
    squares = np.array([((s - s.mean()) ** 2).sum() for s in samples])
    pure = PureError(squares, np.array([len(s) - 1.0 for s in samples]))
    assert pure.equal == (bartlett(*samples).pvalue >= 0.01)


def test_a_robust_fit_is_not_tested() -> None:
    robust = fit_law(LatentsAndK, _table(0.01, 0), method="huber")
    assert "least squares" in lack_of_fit(robust).message
    assert "least squares" in floors(robust).message
    assert aicc(robust) is None


def test_what_cannot_be_tested_says_why() -> None:
    alone = lack_of_fit(fit_law(LatentsAndK, _table(0.01, 0, cells=GRID)))
    assert not alone.found
    assert alone.p is None
    assert "no point was trained with a second seed" in alone.message
    assert alone.json()["p"] is None
    table = _table(0.01, 0)
    loss = table.loss.copy()
    columns = np.array(list(CELLS))
    for cell in CENTER:
        loss[(columns == np.array(cell)).all(axis=1)] = 0.3
    copies = RunTable(table.points, loss, table.runs, "loss", table.seeds)
    assert "are they copies" in lack_of_fit(fit_law(LatentsAndK, copies)).message


def test_a_law_with_a_parameter_per_point_has_nothing_to_test() -> None:
    six = [(256, 4), (1024, 8), (4096, 16), (256, 8), (1024, 16), (4096, 4)]
    table = _table(0.01, 0, cells=[Cell(n, k, 1000) for n, k in six] * 2)
    assert "as many parameters" in lack_of_fit(fit_law(LatentsAndK, table)).message
