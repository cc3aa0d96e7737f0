"""Numbers with their standard errors, against drawing the units again."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from scaling.evaluation.estimate import Baseline, Estimate

RNG_SEED = 0


def redrawn(n_units: int, statistic: Callable[[np.ndarray], float]) -> float:
    """The standard deviation over 2,000 draws of units with replacement."""
    rng = np.random.default_rng(RNG_SEED)
    return float(np.std([statistic(rng.integers(0, n_units, n_units)) for _ in range(2000)]))


def test_a_ratio_scatters_as_units_drawn_again() -> None:
    rng = np.random.default_rng(1)
    counts = rng.choice([1.0, 9.0], 60)
    sums = rng.normal(0.5, 1, 60) * counts
    found = Estimate.ratio(sums, counts, "contexts")
    assert found.value == pytest.approx(sums.sum() / counts.sum())
    expected = redrawn(60, lambda draw: sums[draw].sum() / counts[draw].sum())
    assert found.standard_error == pytest.approx(expected, rel=0.1)
    naive = (sums / counts).std() / math.sqrt(60)
    assert abs(naive / expected - 1) > 0.1, "units of unlike counts are not to count alike"


def test_the_mean_of_values_where_some_are_not_defined() -> None:
    found = Estimate.mean([0.1, 0.4, np.nan, 0.7], "latents")
    assert found.value == pytest.approx(0.4)
    assert found.standard_error == pytest.approx(0.3 / math.sqrt(3))
    assert Estimate.mean([0.4, np.nan], "latents").standard_error is None  # of one


def test_values_of_one_unit_belong_together() -> None:
    rng = np.random.default_rng(2)
    units = np.repeat(np.arange(50), rng.integers(2, 9, 50))
    values = 2 + rng.normal(size=50)[units] + 0.3 * rng.normal(size=len(units))
    values[3] = np.nan
    of_unit = [values[(units == unit) & ~np.isnan(values)] for unit in range(50)]
    found = Estimate.grouped(values, units, 50, "tokens")
    assert found.value == pytest.approx(np.nanmean(values))
    expected = redrawn(50, lambda draw: np.concatenate([of_unit[u] for u in draw]).mean())
    assert found.standard_error == pytest.approx(expected, rel=0.1)
    alone = np.nanstd(values) / math.sqrt(len(values))
    assert alone < 0.6 * expected, "as of independent values it would be too small"
    assert Estimate.grouped(values[:2], units[:2], 50, "tokens").standard_error is None


def test_a_difference_is_taken_unit_by_unit() -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 1, 40)
    ours, theirs = (shared + 0.1 * rng.normal(size=40) + mean for mean in (1.0, 1.5))
    found = Estimate.mean(ours, "tasks").against(Estimate.mean(theirs, "tasks"))
    assert found is not None
    assert (found.value, found.difference) == pytest.approx((theirs.mean(), (ours - theirs).mean()))
    assert found.standard_error == pytest.approx((ours - theirs).std(ddof=1) / math.sqrt(40))
    assert found.standard_error < 0.2 * Estimate.mean(ours, "tasks").standard_error  # type: ignore[operator]


def test_a_difference_of_unlike_counts_scatters_as_units_drawn_again() -> None:
    """As of latents, of which a token has many or few, against channels, of which it has eight."""
    rng = np.random.default_rng(4)
    of_token, counts = rng.normal(0, 1, 60), rng.choice([2.0, 30.0], 60)
    ours = (of_token + 0.5 * rng.normal(size=60)) * counts
    theirs = (of_token + 0.5 * rng.normal(size=60)) * 8
    eight = np.full(60, 8.0)
    found = Estimate.ratio(ours, counts, "tokens").against(Estimate.ratio(theirs, eight, "tokens"))
    expected = redrawn(
        60, lambda d: ours[d].sum() / counts[d].sum() - theirs[d].sum() / eight[d].sum()
    )
    assert found is not None
    assert found.standard_error == pytest.approx(expected, rel=0.1)


def test_a_unit_that_only_one_of_two_has_still_belongs_to_both() -> None:
    """As a token where no latent is active, and channels are."""
    rng = np.random.default_rng(5)
    units, theirs = np.repeat(np.arange(40), 3), rng.normal(size=40)
    ours = theirs[units] + 0.1 * rng.normal(size=120)
    here = units < 35
    found = Estimate.grouped(ours[here], units[here], 40, "tokens").against(
        Estimate.grouped(theirs, np.arange(40), 40, "tokens")
    )

    def apart(draw: np.ndarray) -> float:
        of_ours = [ours[units == unit] for unit in draw if unit < 35]
        return float(np.concatenate(of_ours).mean() - theirs[draw].mean())

    assert found is not None
    assert found.standard_error == pytest.approx(redrawn(40, apart), rel=0.1)


def test_units_that_say_nothing_do_not_count_as_drawn() -> None:
    """A sum without a count does say something: it moves the ratio."""
    three = Estimate.ratio([1, 5, 3], [1, 2, 0], "vectors")
    squares = (1 - 3) ** 2 + (5 - 6) ** 2 + 3**2
    assert three.standard_error == pytest.approx(math.sqrt(squares * 3 / 2) / 3)
    padded = Estimate.ratio([1, 5, 3, 0], [1, 2, 0, 0], "vectors")
    assert padded.standard_error == three.standard_error
    found = padded.against(Estimate.ratio([0, 0, 0, 4], [0, 0, 0, 2], "vectors"))
    assert found is not None
    assert found.standard_error == pytest.approx(math.sqrt(squares * 4 / 3) / 3)  # of all four


def test_what_is_not_of_the_same_units_has_a_difference_without_error() -> None:
    ours = Estimate.mean([1.0, 2.0, 3.0], "tasks")
    assert ours.against(Estimate.mean([1.0, 2.0], "tasks")) == Baseline(1.5, 0.5, None)
    assert ours.against(Estimate.mean([1.0, 2.0, 3.0], "vectors")) == Baseline(2.0, 0.0, None)


def test_what_is_not_defined_has_no_error_and_no_difference() -> None:
    nothing, something = Estimate.ratio([1, 2], [0, 0], "vectors"), Estimate.mean([1], "vectors")
    assert nothing.value is nothing.standard_error is None
    assert nothing.against(something) is something.against(nothing) is None
    empty = Estimate.grouped([], [], 0, "tokens")
    assert empty.value is empty.standard_error is None
