"""Floors of single k against the joint floor: agreement, disagreement, and honest lower ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fabricate import PLANTED, Cell, planted_table, points_of
from gpt4 import gpt4_table, with_losses

from analysis.fitting.fit import Fit, fit_law
from analysis.judgement.floors import floors
from analysis.judgement.slices import fit_slice, slice_form
from analysis.laws.joint import (
    LatentsAndK,
    LatentsKPlusTokens,
    LatentsKTokens,
    LatentsKTokensTilted,
)

TRUE_LNK = LatentsAndK(**{name: PLANTED.parameters[name] for name in LatentsAndK.parameter_names})
CELLS = [Cell(2**i, k, 1) for i in range(8, 17) for k in (4, 8, 16, 32)]
LADDERS = [
    Cell(n, k, d)
    for n in (256, 512, 1024, 2048, 4096)
    for k in (4, 16, 64)
    for d in (125_000, 500_000, 2_000_000, 8_000_000)
]


def _fit(noise: float, seed: int = 0) -> Fit:
    return fit_law(LatentsAndK, planted_table(TRUE_LNK, CELLS, noise, seed))


@pytest.mark.parametrize(
    "law", [LatentsAndK, LatentsKTokens, LatentsKTokensTilted, LatentsKPlusTokens]
)
def test_a_slice_says_at_its_k_what_the_joint_law_says(law) -> None:
    fit = fit_law(
        law,
        planted_table(PLANTED, LADDERS, 0.01)
        if law is not LatentsAndK
        else planted_table(TRUE_LNK, CELLS, 0.01),
    )
    shape = slice_form(law.form, law.floor_column)
    points = points_of([c for c in LADDERS if c.k == 16])
    logs = {a: np.log(points[a]) - fit.center[a] for a in fit.law.axes if a != "k"}
    log_k = np.log(16) - fit.center["k"]
    at_k = shape.coefficients(fit.centered, log_k)
    np.testing.assert_allclose(shape.form.design(logs).log_value(at_k), fit.log_predict(points))
    floor = np.exp(fit.law.parameters["zeta"] + fit.law.parameters["eta"] * np.log(16))
    assert np.exp(at_k[shape.floor]) == pytest.approx(floor)
    assert shape.floor_gradient(log_k) @ fit.centered == pytest.approx(np.log(floor))


def test_slices_fit_their_runs_at_least_as_well_as_the_joint_law() -> None:
    fit = _fit(0.01)
    for k in (4.0, 8.0, 16.0, 32.0):
        joint = fit.residuals[fit.table.points["k"] == k]
        assert fit_slice(fit, k).sum_of_squares <= joint @ joint


def test_the_profile_is_where_the_sum_of_squares_has_risen_so_far() -> None:
    one = fit_slice(_fit(0.01), 16.0)
    allowed = 3.0 * one.sum_of_squares / one.degrees_of_freedom
    low, high = one.floor_interval(allowed)
    assert low < one.floor < high
    for end in (low, high):
        risen = one.profile(1.0).rise(np.log(end), one.profile(1.0).start)[0]
        assert risen == pytest.approx(allowed, rel=1e-2)


def test_a_planted_law_agrees_with_its_slices_and_intervals_hold_its_floors() -> None:
    truth = {k: np.exp(TRUE_LNK.zeta + TRUE_LNK.eta * np.log(k)) for k in (4, 8, 16, 32)}
    held, joint_held, p = [], [], []
    for seed in range(12):
        judged = floors(_fit(0.01, seed))
        p.append(judged.p)
        for floor in judged.slices:
            held.append(floor.own_interval[0] <= truth[int(floor.k)] <= floor.own_interval[1])
            joint_held.append(
                floor.joint_interval[0] <= truth[int(floor.k)] <= floor.joint_interval[1]
            )
    assert np.mean(held) >= 0.85  # of 48, nominal 0.95
    assert np.mean(joint_held) >= 0.80  # four floors of one fit: 12 independent ones
    assert np.mean(np.array(p) < 0.05) <= 0.25
    assert min(p) > 1e-4
    assert "Slices of one k agree" in floors(_fit(0.01, 0)).message


def test_a_floor_that_does_not_follow_k_is_found() -> None:
    table = planted_table(TRUE_LNK, CELLS, 0.002)
    bumped = table.loss + 0.06 * (table.points["k"] == 16)
    judged = floors(fit_law(LatentsAndK, with_losses(table, bumped)))
    assert judged.found
    assert judged.message.startswith("Fitted one k at a time, the runs follow other laws")
    assert "compare rival forms" in judged.message
    at = {floor.k: floor for floor in judged.slices}
    assert at[16.0].joint_outside
    truth = np.exp(TRUE_LNK.zeta + TRUE_LNK.eta * np.log(16)) + 0.06
    assert at[16.0].own == pytest.approx(truth, rel=0.05)


def test_without_a_floor_the_lower_end_is_zero() -> None:
    cells = [Cell(n, k, 1) for n in (256, 512, 1024, 2048, 4096) for k in (4, 8, 16, 32)]
    bare = replace(TRUE_LNK, zeta=-20.0)
    judged = floors(fit_law(LatentsAndK, planted_table(bare, cells, 0.02)))
    assert [floor.own_interval[0] for floor in judged.slices] == [0.0] * 4
    assert all(0 < floor.own_interval[1] < 0.3 for floor in judged.slices)


def test_laws_with_tokens_have_slices_too() -> None:
    table = planted_table(PLANTED, LADDERS, 0.002)
    right = floors(fit_law(LatentsKTokensTilted, table))
    assert [f.n_runs for f in right.slices] == [20, 20, 20]
    assert not right.found
    # The plain law ties the token terms of all k to one: its slices need not agree with it.
    assert floors(fit_law(LatentsKTokens, table)).found


def test_slices_with_too_few_runs_are_skipped_by_name() -> None:
    cells = [c for c in CELLS if c.k != 32 or c.n <= 512]
    judged = floors(fit_law(LatentsAndK, planted_table(TRUE_LNK, cells, 0.01)))
    assert judged.skipped == {32.0: "2 runs, 4 needed"}
    assert len(judged.slices) == 3
    assert judged.test is not None
    assert judged.test.freedoms == (3.0, 18.0)
    assert judged.json()["skipped"] == {"32": "2 runs, 4 needed"}
    few = [c for c in CELLS if c.k < 16 or c.n <= 512]
    nothing = floors(fit_law(LatentsAndK, planted_table(TRUE_LNK, few, 0.01)))
    assert "fewer than 3 k" in nothing.message
    assert nothing.json()["p"] is None
    assert not nothing.found


def test_the_papers_points_do_not_lie_on_one_floor() -> None:
    """Measured: the F test's p is 2.5e-6, and the slice of k = 512 has a higher floor."""
    judged = floors(fit_law(LatentsAndK, gpt4_table()))
    assert judged.found
    assert judged.test is not None
    assert judged.test.f == pytest.approx(8.80, abs=0.01)
    assert judged.p == pytest.approx(2.5e-6, rel=0.02)
    assert "F = 8.8 on 9 and 30 degrees of freedom, p = 2.5e-06" in judged.message
    last = judged.slices[-1]
    assert (last.own, last.joint) == (pytest.approx(0.1713, abs=2e-4), pytest.approx(0.1465, 1e-3))
    assert last.joint_outside


def test_runs_on_the_law_have_nothing_to_compare() -> None:
    assert "exactly" in floors(_fit(0.0)).message
