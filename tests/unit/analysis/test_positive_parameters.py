"""Parameters that are above 0 by their form: no interval reaches below, and no floor reads as 0."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import stdtrit

from analysis.judgement.identifiability import identifiability
from analysis.laws import LAWS
from analysis.laws.law import Law
from analysis.laws.powers import OfLatents, TokensToConvergence
from analysis.records.table import RunTable
from analysis.study.fitted import fit_table, to_json
from analysis.study.words import describe
from analysis.uncertainty.profile import floor_interval

N = np.repeat(2.0 ** np.arange(8, 14), 2)


def _table(law: Law, noise: float, response: str = "loss") -> RunTable:
    points = {"n": N, "k": np.full(len(N), 16.0)}
    errors = np.random.default_rng(0).standard_normal(len(N))
    names = tuple(map(str, range(len(N))))
    values = law.predict(points) * np.exp(noise * errors)
    return RunTable(points, values, names, response, names, response=response)


def test_every_scale_of_a_law_is_one_of_its_parameters_and_above_0() -> None:
    """At coefficients of any sign, and whatever the reference sizes."""
    rng = np.random.default_rng(1)
    for law in LAWS.values():
        assert set(law.scales) <= set(law.parameter_names)
        shape = 20, len(law.parameter_names)
        coefficients = rng.uniform(0.5, 1.0, shape) * rng.choice([-1.0, 1.0], shape)
        values = law.parameters_from(coefficients, {"n": 1024.0, "k": 16.0})
        above = {p for p, v in zip(law.parameter_names, values.T, strict=True) if (v > 0).all()}
        assert above == set(law.scales)


def test_the_interval_of_tokens_is_of_their_log() -> None:
    """Errors of a factor 20: a symmetric interval would reach below 0."""
    table = _table(TokensToConvergence(1e5, 0.6, 1024.0), 3.0, "tokens")
    fitted = fit_table(TokensToConvergence, table, n_bootstrap=0)
    value, error = fitted.law.parameters["D0"], fitted.fit.standard_errors["D0"]
    half = float(stdtrit(10, 0.975)) * error / value
    assert value - half * value < 0
    expected = (value * np.exp(-half), value * np.exp(half))
    assert fitted.ci95["D0"] == pytest.approx(expected, rel=1e-12)
    slope, slope_error = fitted.law.parameters["s"], fitted.fit.standard_errors["s"]
    half = float(stdtrit(10, 0.975)) * slope_error
    assert fitted.ci95["s"] == pytest.approx((slope - half, slope + half), rel=1e-12)


@pytest.mark.parametrize("n_bootstrap", [0, 100])
def test_a_floor_at_its_bound_reads_as_none(n_bootstrap: int) -> None:
    table = _table(OfLatents(E=1e-12, A=4.0, b=0.35), 0.01)
    fitted = fit_table(OfLatents, table, n_bootstrap=n_bootstrap)
    low, high = fitted.ci95["E"]
    assert low == 0.0
    assert high == pytest.approx(floor_interval(fitted.fit).high, rel=1e-9)
    assert 0.001 < high < 0.1
    assert f"0 (none)   95% [0, {high:.4g}]" in describe(fitted)
    assert fitted.ci95_method.endswith("; E by profile likelihood")
    assert to_json(fitted)["ci95"]["E"] == [0.0, high]


def test_a_floor_too_small_to_matter_reads_as_none_however_well_it_is_known() -> None:
    """Of runs without scatter: a floor of 0.01% of the lowest loss has a profile above 0."""
    fitted = fit_table(OfLatents, _table(OfLatents(E=2e-5, A=4.0, b=0.35), 1e-7), n_bootstrap=0)
    profiled = floor_interval(fitted.fit)
    assert 1e-5 < profiled.low < 2e-5 < profiled.high
    assert fitted.ci95["E"] == (0.0, profiled.high)
    assert "0 (none)" in describe(fitted)


def test_a_floor_that_is_there_keeps_its_value() -> None:
    table = _table(OfLatents(E=0.2, A=8.0, b=0.6), 0.003)
    plain, drawn = (fit_table(OfLatents, table, n_bootstrap=b) for b in (0, 200))
    own = floor_interval(plain.fit)
    assert plain.ci95["E"] == (own.low, own.high)
    assert 0.15 < own.low < 0.2 < own.high < 0.25
    assert drawn.ci95["E"] == drawn.refits.parameter_intervals()["E"]  # type: ignore[union-attr]
    assert "(none)" not in describe(plain)
    assert "profile" not in drawn.ci95_method


def test_signs_are_asked_only_of_parameters_that_have_one() -> None:
    table = _table(TokensToConvergence(1e5, 0.0, 1024.0), 3.0, "tokens")
    fitted = fit_table(TokensToConvergence, table, n_bootstrap=0)
    judged = identifiability(TokensToConvergence, table, fitted.fit)
    assert fitted.law.parameters["D0"] < 1.96 * fitted.fit.standard_errors["D0"]
    assert judged.unresolved == ("s",)
