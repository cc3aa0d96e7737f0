from __future__ import annotations

import time

import numpy as np
import pytest
from fabricate import PLANTED, demo_cells, planted_table
from gpt4 import gpt4_table
from scipy.optimize import least_squares

from analysis.errors import TableError
from analysis.fitting.fit import fit_law
from analysis.laws.joint import LatentsAndK, LatentsKTokens, LatentsKTokensTilted
from analysis.records.table import RunTable
from analysis.uncertainty.bootstrap import bootstrap, refit, resample, resample_clusters


def _demo_table(seed: int = 0) -> RunTable:
    return planted_table(PLANTED, demo_cells(), 0.01, seed)


def test_samples_hold_every_draw_and_enough_different_runs() -> None:
    counts = resample(np.random.default_rng(0), 500, 12, least=8)
    assert counts.shape == (500, 12)
    assert (counts.sum(axis=1) == 12).all()
    assert (np.count_nonzero(counts, axis=1) >= 8).all()
    unconstrained = resample(np.random.default_rng(0), 500, 12, least=1)
    assert (np.count_nonzero(unconstrained, axis=1) < 8).any()


def test_samples_that_never_determine_the_law_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(TableError, match=r"5 of 5 bootstrap samples .* \(--bootstrap 0\)"):
        resample(rng, 5, 30, least=30)  # all of 30 drawn: once in 10^12 samples
    barely = resample(rng, 100, 12, least=11)  # the fewest runs for ten parameters
    assert (np.count_nonzero(barely, axis=1) >= 11).all()
    two = np.array([0, 0, 1, 1])
    with pytest.raises(TableError, match=r"name clusters of which there are more \(--clusters\)"):
        resample_clusters(rng, 5, two, two[:, None], least=1)


def test_equal_weights_return_the_fit() -> None:
    fit = fit_law(LatentsAndK, gpt4_table())
    away = fit.centered + 0.05
    weights = np.ones((1, len(fit.table)))
    found, settled = refit(fit.design(fit.table.points), fit.table.log_loss, weights, away)
    assert settled.all()
    np.testing.assert_allclose(found[0], fit.centered, atol=1e-5)


@pytest.mark.parametrize("law", [LatentsKTokens, LatentsKTokensTilted])
def test_refits_are_the_optima_of_the_resampled_runs(law: type[LatentsKTokens]) -> None:
    fit = fit_law(law, _demo_table())
    counts = resample(np.random.default_rng(1), 12, len(fit.table), 14)
    design, log_loss = fit.design(fit.table.points), fit.table.log_loss
    found, settled = refit(design, log_loss, counts, fit.centered)
    assert settled.all()
    for coefficients, weights in zip(found, counts, strict=True):
        root = np.sqrt(weights)
        oracle = least_squares(
            lambda c, root=root: root * (design.log_value(c) - log_loss), fit.centered, xtol=1e-12
        )
        cost = 0.5 * np.sum(weights * (design.log_value(coefficients) - log_loss) ** 2)
        assert cost <= oracle.cost * (1 + 1e-6)


def test_intervals_are_about_as_wide_as_the_errors_say() -> None:
    fit = fit_law(LatentsKTokensTilted, _demo_table())
    refits = bootstrap(fit, 1000, seed=0)
    for name, (low, high) in refits.parameter_intervals().items():
        assert high - low == pytest.approx(3.92 * fit.standard_errors[name], rel=0.6)
    band = refits.band(fit.table.points)
    inside = (band.low <= np.exp(fit.log_predict(fit.table.points))) & (
        np.exp(fit.log_predict(fit.table.points)) <= band.high
    )
    assert inside.all()
    narrower = refits.band(fit.table.points, level=0.5)
    assert (narrower.low > band.low).all()


def test_intervals_cover_the_truth() -> None:
    """Nominal 95 %; 24 data sets of 10 correlated parameters have a standard error near 2 %."""
    truth = np.array(list(PLANTED.parameters.values()))
    hits = []
    for seed in range(24):
        fit = fit_law(LatentsKTokensTilted, _demo_table(seed), {"n": 1024.0, "k": 16.0})
        intervals = np.array(list(bootstrap(fit, 250, seed).parameter_intervals().values()))
        hits.append((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))
    assert 0.89 <= np.mean(hits) <= 0.99


def test_the_seed_decides_the_refits() -> None:
    fit = fit_law(LatentsAndK, gpt4_table())
    first, again, other = (bootstrap(fit, 100, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.coefficients, again.coefficients)
    assert not np.array_equal(first.coefficients, other.coefficients)


def test_thousands_of_refits_take_seconds() -> None:
    fit = fit_law(LatentsKTokensTilted, _demo_table())
    begun = time.perf_counter()
    refits = bootstrap(fit, 4000, seed=0)
    # 1.1 s on an idle core; the limit leaves room for a busy machine.
    assert time.perf_counter() - begun < 10
    assert len(refits) == 4000
    assert refits.share_unsettled < 0.01
