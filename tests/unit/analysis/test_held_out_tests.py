"""Which ends of a sweep are hidden, and what the predictions of them say of a law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fabricate import PLANTED, Cell, planted_table
from gpt4 import gpt4_table

from analysis.fitting.fit import fit_law
from analysis.judgement.held_out_tests import held_out_tests, holdout_plans, predictive_p
from analysis.laws import LAWS
from analysis.laws.joint import LatentsAndK, LatentsKTokens, LatentsKTokensTilted

SIZES, SPARSITIES = (256, 512, 1024, 2048, 4096), (4, 8, 16)
GRID = [Cell(n, k, d) for n in SIZES for k in SPARSITIES for d in (250_000, 500_000, 1_000_000)]
# Budgets 1/16, 1/4 and 1 of one that grows with n: the largest of all is the largest n's own.
SCALED = [Cell(n, k, n * d) for n in SIZES for k in SPARSITIES for d in (250, 1000, 4000)]


def _plans(cells: list[Cell], law=None) -> dict[str, tuple[int, str]]:
    table = planted_table(PLANTED, cells, 0.0)
    return {p.name: (int(p.mask.sum()), p.refusal) for p in holdout_plans(table, law)}


def test_a_grid_hides_its_ends() -> None:
    assert _plans(GRID) == {
        "largest n": (9, ""),
        "largest tokens": (15, ""),
        "largest n and largest tokens": (9 + 15 - 3, ""),
    }
    table = planted_table(PLANTED, GRID, 0.0)
    both = holdout_plans(table)[-1].mask
    hidden = {(c.n, c.tokens) for c, hide in zip(GRID, both, strict=True) if hide}
    assert hidden == {(c.n, c.tokens) for c in GRID if c.n == 4096 or c.tokens == 1_000_000}


def test_ladders_that_grow_with_n_hide_the_longest_of_each() -> None:
    found = _plans(SCALED)
    assert found["largest tokens of each n"] == (15, "")
    assert found["largest tokens"] == (3, "")
    assert "largest n and largest tokens" not in found  # that is the largest n alone


def test_whole_batches_do_not_split_the_largest_budget() -> None:
    rounded = [c._replace(tokens=c.tokens - 31 * (c.n == 256)) for c in GRID]
    assert _plans(rounded)["largest tokens"] == (15, "")


def test_a_rest_that_cannot_be_fitted_says_why() -> None:
    found = _plans(GRID, LatentsKTokens)
    assert found["largest n"][1] == ""
    assert "3 levels of tokens" in found["largest tokens"][1]
    alone = _plans([c for c in GRID if c.n == 256])
    assert "every run has the largest n" in alone["largest n"][1]
    tests = held_out_tests(LatentsKTokens, planted_table(PLANTED, GRID, 0.005))
    assert [t.holdout is not None for t in tests] == [True, False, False]
    assert "not possible; law l_nkd needs at least 3 levels of tokens" in tests[1].message
    assert tests[1].json()["p"] is None


def test_the_numbers_are_those_of_the_fit_of_the_rest() -> None:
    table = planted_table(PLANTED, SCALED, 0.005)
    first = held_out_tests(LatentsKTokensTilted, table)[0]
    hidden = table.points["n"] == 4096
    fit = fit_law(LatentsKTokensTilted, table.select(~hidden))
    residuals = table.select(hidden).log_loss - fit.log_predict(table.select(hidden).points)
    assert first.holdout is not None
    np.testing.assert_allclose(first.holdout.residuals, residuals, atol=1e-9)
    assert first.holdout.mean_log == pytest.approx(residuals.mean())
    assert first.n_fitted == 36
    assert first.json()["n"] == 9


def test_chows_test_holds_its_level_and_sees_a_shift() -> None:
    p, shifted = [], []
    hidden = np.array([c.n == 4096 for c in SCALED])
    for seed in range(12):
        table = planted_table(PLANTED, SCALED, 0.005, seed)
        fit = fit_law(LatentsKTokensTilted, table.select(~hidden))
        held = table.select(hidden)
        p.append(predictive_p(fit, held))
        shifted.append(predictive_p(fit, replace(held, loss=held.loss * np.exp(0.1))))
    assert np.mean(np.array(p) < 0.05) <= 0.2
    assert 0.2 <= np.mean(np.array(p) < 0.5) <= 0.8
    assert np.mean(np.array(shifted) < 0.01) >= 0.9


def test_a_wrong_law_is_found_by_what_it_predicts() -> None:
    """A law without a floor, of runs that have one, sinks too fast beyond them."""
    cells = [Cell(n, k, 1) for n in (*SIZES, 8192) for k in (*SPARSITIES, 32)]
    truth = LatentsAndK(**{p: PLANTED.parameters[p] for p in LatentsAndK.parameter_names})
    table = planted_table(truth, cells, 0.002)
    wrong = held_out_tests(LAWS["l_nk_no_floor"], table)[0]
    right = held_out_tests(LatentsAndK, table)[0]
    assert wrong.found
    assert not right.found
    assert wrong.holdout is not None
    assert right.holdout is not None
    assert wrong.holdout.rms_log > 10 * right.holdout.rms_log
    assert "the errors are larger than the parameters' uncertainty" in wrong.message
    assert "the errors are no larger than the parameters' uncertainty" in right.message


def test_a_table_without_tokens_hides_n_alone() -> None:
    (only,) = held_out_tests(LatentsAndK, gpt4_table())
    assert only.plan == "largest n"
    assert only.holdout is not None
    assert only.holdout.rms_log == pytest.approx(0.0180, abs=1e-4)
