"""Intervals from seeds against scipy's t tests, and the line in n against its regression."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.sparsity.equal import AtL0
from analysis.sparsity.power import power_of_n
from analysis.sparsity.series import Place
from analysis.uncertainty.seeds import difference, mean_interval, pooled

A = {0.0: -1.50, 1.0: -1.52, 2.0: -1.47, 3.0: -1.49}
B = {0.0: -1.40, 1.0: -1.44, 2.0: -1.35, 3.0: -1.38}
OTHERS = {10.0: -1.40, 11.0: -1.44, 12.0: -1.35}


def test_one_place_is_the_plain_t_interval() -> None:
    found = mean_interval(A, pooled([A.values()]))
    values = [*A.values()]
    wanted = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found is not None
    assert np.log(found) == pytest.approx(wanted)


def test_places_are_pooled_about_their_own_means() -> None:
    found = pooled([A.values(), [v + 5.0 for v in B.values()], [1.0]])
    squares = 3 * np.var([*A.values()], ddof=1) + 3 * np.var([*B.values()], ddof=1)
    assert found == pytest.approx((squares / 6, 6))
    assert pooled([[1.0], [2.0]]) is None


def test_shared_seeds_are_paired() -> None:
    found = difference({"n": B}, {"n": A}, "n").interval
    wanted = stats.ttest_rel([*B.values()], [*A.values()]).confidence_interval()
    assert found == pytest.approx(tuple(wanted))


def test_other_seeds_are_compared_as_welch_did() -> None:
    found = difference({"n": OTHERS}, {"n": A}, "n").interval
    test = stats.ttest_ind([*OTHERS.values()], [*A.values()], equal_var=False)
    assert found == pytest.approx(tuple(test.confidence_interval()))


def test_doubt_adds_in_squares() -> None:
    plain, wider = (difference({"n": B}, {"n": A}, "n", doubt) for doubt in (0.0, 0.1))
    assert plain.interval is not None
    assert wider.interval is not None
    halves = [(one.high - one.low) / 2 for one in (plain.interval, wider.interval)]
    assert halves[1] == pytest.approx(np.hypot(halves[0], 0.1))


def _at(n: int, seeds: dict[float | None, float]) -> AtL0:
    return AtL0(Place("relu", n, (1.0, 1.0)), seeds, 0.0, 32.0, 32.0, 0.0)


def test_without_repeated_seeds_the_line_is_a_plain_regression() -> None:
    sizes, losses = [256, 512, 1024, 2048], [-1.0, -1.22, -1.31, -1.55]
    points = [_at(n, {0.0: y}) for n, y in zip(sizes, losses, strict=True)]
    law = power_of_n(points, "relu")
    wanted = stats.linregress(np.log(sizes), losses)
    half = stats.t.ppf(0.975, 2) * wanted.stderr
    assert law is not None
    assert law.b == pytest.approx(-wanted.slope)
    assert law.b_interval == pytest.approx((-wanted.slope - half, -wanted.slope + half))
    assert pytest.approx(np.exp(wanted.intercept)) == law.A
    assert power_of_n(points[:2], "relu") is None


def test_points_off_the_line_widen_the_interval_beyond_the_seeds() -> None:
    def width(bend: float) -> float:
        losses = {256: -1.0, 512: -1.2 + bend, 1024: -1.4 - bend, 2048: -1.6}
        points = [_at(n, {0.0: y - 0.005, 1.0: y + 0.005}) for n, y in losses.items()]
        law = power_of_n(points, "relu")
        assert law is not None
        return law.b_interval.high - law.b_interval.low

    assert width(0.1) > 5 * width(0.0)
