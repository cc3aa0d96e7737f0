"""Predictions from a stored fit: the numbers of the fit itself, ranges, choices, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import Cell, points_of
from gpt4 import gpt4_table
from planted_fit import planted_fit, stored_as

from analysis.command import write_json
from analysis.errors import TableError
from analysis.laws.joint import LatentsAndK, LatentsKTokensTilted
from analysis.planning.quantities import count, grid
from analysis.planning.stored import of_fitted, read_law, stored_law
from analysis.predict import predict_command
from analysis.study.fitted import FittedLaw, fit_table, to_json
from analysis.uncertainty.doubt import prediction_interval

POINTS = points_of([Cell(2048, 16, 10**6), Cell(65536, 64, 10**9)])


@pytest.fixture(scope="module")
def fitted() -> FittedLaw:
    return planted_fit()


@pytest.fixture
def fits(tmp_path: Path, fitted: FittedLaw) -> Path:
    """A report's fits.json with two fits of the headline and one of another budget's law."""
    final = to_json(fitted)
    first = {**final, "rows": "runs with n < 4096", "params": {**final["params"], "alpha": -0.5}}
    fixed = {**to_json(_gpt4_fit()), "title": "L(n,k | D=500k)"}
    fixed["ranges"] = {**fixed["ranges"], "tokens": [5e5, 5e5]}
    content = {
        **{"schema_version": 1, "headline": {"law": "l_nkdu", "title": "L(n,k,D) with u"}},
        **{"fits": [fixed, first, final], "provenance": {"d_model": [576]}},
    }
    path = tmp_path / "fits.json"
    path.write_text(json.dumps(content))
    return path


def _gpt4_fit() -> FittedLaw:
    return fit_table(LatentsAndK, gpt4_table(), n_bootstrap=0)


def test_a_stored_fit_predicts_what_the_fit_predicts(tmp_path: Path, fitted: FittedLaw) -> None:
    path = tmp_path / "fit.json"
    write_json(path, to_json(fitted))
    predicted = read_law(path).predict(POINTS)
    run, law = (prediction_interval(fitted.fit, POINTS, noise=noise) for noise in (True, False))
    assert predicted.of_run is not None
    assert predicted.of_law is not None
    np.testing.assert_allclose(predicted.value, np.exp(fitted.fit.log_predict(POINTS)), rtol=1e-9)
    np.testing.assert_allclose(predicted.of_run, run, rtol=1e-7)
    np.testing.assert_allclose(predicted.of_law, law, rtol=1e-7)
    assert (predicted.of_law.low > predicted.of_run.low).all()


def test_prediction_intervals_hold_the_papers_held_out_points() -> None:
    table = gpt4_table()
    held = table.points["n"] > 65536
    stored = of_fitted(fit_table(LatentsAndK, table, held_out=held, n_bootstrap=0))
    rest = table.select(held)
    predicted = stored.predict(rest.points)
    assert predicted.of_run is not None
    inside = (predicted.of_run.low <= rest.loss) & (rest.loss <= predicted.of_run.high)
    assert inside.all()
    assert np.sqrt(np.mean(np.log(rest.loss / predicted.value) ** 2)) == pytest.approx(
        0.0261, abs=5e-5
    )


def test_the_headline_on_all_runs_is_the_default(fits: Path, fitted: FittedLaw) -> None:
    chosen = read_law(fits)
    assert (chosen.law.name, chosen.rows, chosen.d_model) == ("l_nkdu", "all runs", 576)
    assert chosen.law.parameters == fitted.law.parameters
    assert read_law(fits, rows="n < 4096").law.parameters["alpha"] == -0.5
    assert read_law(fits, law="l_nk").law.parameters["alpha"] == pytest.approx(-0.4224, abs=1e-4)
    assert read_law(fits, law="L(n,k | D=500k)").law.name == "l_nk"


def test_files_from_before_the_variance_was_in_them(fitted: FittedLaw) -> None:
    old = {
        key: value
        for key, value in to_json(fitted).items()
        if key not in ("variance", "degrees_of_freedom", "ranges")
    }
    stored = stored_law(old, source="old.json")
    assert stored.variance == pytest.approx(fitted.fit.variance, rel=1e-12)
    assert stored.degrees_of_freedom == fitted.fit.degrees_of_freedom
    assert stored.outside(POINTS) == ["", ""]


def test_outside_the_range_is_said_by_axis_and_factor(fitted: FittedLaw) -> None:
    low = points_of([Cell(2048, 2, 10**6)])
    stored = of_fitted(fitted)
    assert stored.outside(POINTS) == ["", "n 16x above; tokens 1000x above"]
    assert stored.outside(low) == ["k 2x below"]
    # Whole batches of a budget are no other budget.
    assert stored.outside({**low, "k": np.array([4.0]), "tokens": np.array([1.001e6])}) == [""]


def test_a_fit_with_a_free_parameter_has_no_intervals(fitted: FittedLaw) -> None:
    stored = stored_law({**to_json(fitted), "covariance": None}, source="fit.json")
    predicted = stored.predict(POINTS)
    assert predicted.of_law is None
    assert predicted.of_run is None
    assert np.isfinite(predicted.value).all()
    with pytest.raises(TableError, match="no covariance"):
        stored.coefficient_covariance()


def test_covariances_in_another_order_are_the_same(fitted: FittedLaw) -> None:
    content = to_json(fitted)
    order = content["covariance_order"][::-1]
    covariance = [row[::-1] for row in content["covariance"][::-1]]
    turned = {**content, "covariance": covariance, "covariance_order": order}
    first, second = (stored_law(c, source="").doubt(POINTS) for c in (content, turned))
    assert first is not None
    np.testing.assert_allclose(first, second, rtol=1e-12)


def test_a_clustered_fits_doubt_is_that_of_its_clusters(tmp_path: Path) -> None:
    fitted = planted_fit(clusters="n")
    path = tmp_path / "fit.json"
    write_json(path, to_json(fitted))
    shared, plain = read_law(path), read_law(path, clustered=False)
    assert (shared.shared_by, shared.degrees_of_freedom, plain.shared_by) == ("n", 4, "")
    for stored, band in (
        (shared, fitted.band(POINTS)),
        (plain, prediction_interval(fitted.fit, POINTS, noise=False)),
    ):
        of_law = stored.predict(POINTS).of_law
        assert of_law is not None
        np.testing.assert_allclose(of_law, band, rtol=1e-7)


def test_the_command_prints_a_line_per_point(
    fits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    words = ["n_latents=2048,64k", "k=16", "tokens=1M,2B"]
    assert predict_command([str(fits), *words, "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line.split()[1:2] == ["16"]]
    assert [row[:3] for row in table] == [
        [n, "16", tokens] for n in ("2048", "64000") for tokens in ("1M", "2B")
    ]
    assert table[0][-1] == "-"
    assert "tokens 2000x above" in lines[-2]
    assert lines[-1].startswith("warning: outside")
    written = json.loads(out.read_text())["predictions"]
    law = LatentsKTokensTilted(**read_law(fits).law.__dict__)
    value = float(law.predict(points_of([Cell(2048, 16, 10**6)]))[0])
    assert written[0]["normalized_mse"] == pytest.approx(value, rel=1e-12)
    assert written[0]["run_pi95"][0] < value < written[0]["run_pi95"][1]
    assert f"{value:.4g}" == table[0][3]


def test_options_may_stand_between_points(fits: Path) -> None:
    assert predict_command([str(fits), "k=16", "--law", "l_nk", "n=2048", "tokens=500k"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["k=16", "n=2048"], "tokens is missing"),
        (["k=16", "n=2048", "tokens=1M", "flops=1e12"], "says nothing of flops"),
        (["k=16", "n=2048", "tokens=600k", "--law", "l_nk"], "fitted at tokens = 500k only"),
        (["k=16", "n=2048", "tokens=0"], "tokens='0' is no number above 0"),
        (["k=16", "n=nan", "tokens=1M"], "n='nan' is no number above 0"),
        (["k=16", "n=12q", "tokens=1M"], "'12q'"),
        (["k=16", "width=12", "tokens=1M"], "'width=12' is no point"),
        (["k=16", "n=12", "n_latents=13", "tokens=1M"], "gives n twice"),
        (["k=16", "n", "tokens=1M"], "'n' is no point"),
        (["k=16,64", "n=8,32", "tokens=1M"], "k = 16 is above n = 8"),
        (["k=1", "--law", "l_n7"], "its fits are: l_nk, 'L(n,k | D=500k)', on 'all runs'"),
        (["k=1", "--rows", "n < 7"], "no fit of --law 'l_nkdu' --rows 'n < 7'"),
    ],
)
def test_bad_words_are_named(
    fits: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict_command([str(fits), *words]) == 2
    assert message in capsys.readouterr().err


def test_too_many_points_are_refused() -> None:
    many = ",".join(map(str, range(1, 102)))
    with pytest.raises(TableError, match="10201 points"):
        grid([f"n={many}", f"k={many}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("64k", 64_000), ("1.5M", 1.5e6), ("2B", 2e9), ("1e9", 1e9), ("0.1M", 1e5), ("500_000", 5e5)],
)
def test_counts_as_typed(text: str, value: float) -> None:
    assert count(text, "tokens") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ('{"schema_version": 99}', "schema_version 99, newer than this program's"),
        ('{"fits": 3}', "fits is not a list"),
        ('{"fits": []}', "its fits are: none"),
        ('{"law": "l_nkd"}', "is not the JSON of a fit (KeyError: 'n_used')"),
        ('{"law": "l_magic", "n_used": 3}', "the law 'l_magic' is not known here"),
    ],
)
def test_files_that_hold_no_fit(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "fit.json"
    path.write_text(content)
    with pytest.raises(TableError) as error:
        read_law(path)
    assert message in str(error.value)


def test_a_missing_file_and_an_infinite_parameter(tmp_path: Path, fitted: FittedLaw) -> None:
    with pytest.raises(TableError, match="cannot read"):
        read_law(tmp_path / "none.json")
    content: dict[str, Any] = to_json(fitted)
    content["params"] = {**content["params"], "D0": None}
    with pytest.raises(TableError, match="no finite D0"):
        stored_law(content, source="fit.json")


def test_a_law_known_without_doubt_has_intervals_of_no_width() -> None:
    stored = stored_as(planted_fit().law, relative_doubt=0.0, variance=0.0)
    predicted = stored.predict(POINTS)
    assert predicted.of_run is not None
    np.testing.assert_allclose(predicted.of_run, [predicted.value] * 2, rtol=1e-12)
