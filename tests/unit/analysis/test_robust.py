"""Huber's fit: a few runs far off do not pull it along; bounds are named; replicates are seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricate import PLANTED, demo_cells, losses_of, points_of
from gpt4 import gpt4_table, with_losses
from scipy.optimize import minimize

from analysis.fit import fit_command
from analysis.fitting.batched import huber_loss, huber_weights
from analysis.fitting.bounds import bounds, floor_share
from analysis.fitting.fit import METHODS, Fit, Method, fit_law
from analysis.fitting.replicates import pure_error
from analysis.fitting.robust import LINEAR_FROM
from analysis.laws.joint import LatentsAndK, LatentsKTokens, LatentsKTokensTilted
from analysis.records.table import RunTable
from analysis.study.fitted import fit_table, to_json
from analysis.uncertainty.bootstrap import bootstrap
from analysis.uncertainty.clusters import Clusters
from analysis.uncertainty.profile import floor_interval

TRUTH = fit_law(LatentsAndK, gpt4_table()).law
CELLS = demo_cells()


def _noisy(seed: int, outliers: int = 2) -> RunTable:
    """The paper's design, 1% noise, and some runs at +20 to +50%."""
    rng, table = np.random.default_rng(seed), gpt4_table()
    loss = TRUTH.predict(table.points) * np.exp(0.01 * rng.standard_normal(len(table)))
    far = rng.choice(len(table), outliers, replace=False)
    loss[far] *= 1 + rng.uniform(0.2, 0.5, outliers)
    return with_losses(table, loss)


def _error(fit: Fit) -> np.ndarray:
    return fit.log_predict(fit.table.points) - TRUTH.log_predict(fit.table.points)


def test_outliers_move_it_by_less_than_a_third_of_what_they_move_least_squares() -> None:
    tables = [_noisy(seed) for seed in range(8)]
    plain = np.mean([_error(fit_law(LatentsAndK, t)) for t in tables], axis=0)
    huber = np.mean([_error(fit_law(LatentsAndK, t, method="huber")) for t in tables], axis=0)
    assert np.sqrt(np.mean(plain**2)) > 0.01
    assert np.sqrt(np.mean(huber**2)) < np.sqrt(np.mean(plain**2)) / 3


def test_it_is_the_minimum_of_hubers_loss_at_its_own_scale() -> None:
    fit = fit_law(LatentsAndK, _noisy(3), method="huber")
    assert fit.scale is not None
    spread = np.sqrt(45 / 39) * 1.4826 * np.median(np.abs(fit.residuals))
    assert fit.scale == pytest.approx(spread, rel=1e-5)
    limit = LINEAR_FROM * fit.scale
    design, log_loss = fit.design(fit.table.points), fit.table.log_loss

    def cost(coefficients: np.ndarray) -> float:
        return float(huber_loss(design.log_value(coefficients) - log_loss, limit).sum()) / limit**2

    step = 1e-5 * np.eye(6)
    gradient = [(cost(fit.centered + s) - cost(fit.centered - s)) / 2e-5 for s in step]
    assert np.abs(gradient).max() < 1e-3 * np.linalg.norm(fit.jacobian) / limit
    found = minimize(cost, fit.centered, method="Nelder-Mead", options={"maxfev": 4000})
    assert cost(fit.centered) <= found.fun * (1 + 1e-6)
    assert all(start.converged for start in fit.starts)


def test_hubers_loss_is_the_square_and_then_a_line_and_its_weights_are_its_slope() -> None:
    residuals = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    np.testing.assert_allclose(huber_loss(residuals, 1.0), [5.0, 1.0, 0.0, 0.25, 3.0])
    np.testing.assert_allclose(huber_loss(residuals, np.inf), residuals**2)
    np.testing.assert_allclose(huber_weights(residuals, 1.0), [1 / 3, 1, 1, 1, 0.5])
    slopes = (huber_loss(residuals + 1e-6, 1.5) - huber_loss(residuals - 1e-6, 1.5)) / 2e-6
    np.testing.assert_allclose(slopes, 2 * residuals * huber_weights(residuals, 1.5), atol=1e-5)


def test_without_outliers_it_is_nearly_least_squares() -> None:
    plain, huber = (
        fit_law(LatentsAndK, _noisy(1, outliers=0), method=method)
        for method in ("least_squares", "huber")
    )
    assert np.abs(plain.log_predict(plain.table.points) - _predicted(huber)).max() < 0.005
    for name, error in plain.standard_errors.items():
        assert huber.standard_errors[name] == pytest.approx(error, rel=0.35)
    assert huber.variance == pytest.approx(plain.variance, rel=0.6)


def _predicted(fit: Fit) -> np.ndarray:
    return fit.log_predict(fit.table.points)


def test_losses_on_the_law_are_fitted_to_the_digit() -> None:
    table = gpt4_table()
    fit = fit_law(LatentsAndK, with_losses(table, TRUTH.predict(table.points)), method="huber")
    for name, value in TRUTH.parameters.items():
        assert fit.law.parameters[name] == pytest.approx(value, rel=1e-5)
    np.testing.assert_array_less(fit.weights, 1 + 1e-12)


@pytest.mark.parametrize("exact", ["on the law", "all equal"])
@pytest.mark.parametrize("method", METHODS)
def test_runs_without_scatter_have_clusters_and_floors(exact: str, method: Method) -> None:
    """No run is clipped by rounding, and no scatter of 0 is divided by."""
    loss = TRUTH.predict(gpt4_table().points) if exact == "on the law" else np.full(45, 0.3)
    fit = fit_law(LatentsAndK, with_losses(gpt4_table(), loss), method=method)
    assert fit.share_unclipped == 1.0
    assert Clusters.of(fit, "n").components.of_new_run < 1e-15
    found = floor_interval(fit, {"k": 32.0})
    assert found.low <= found.floor <= found.high
    if exact == "on the law":
        assert found.high / found.low == pytest.approx(1.0, abs=1e-4)


def test_its_standard_errors_are_the_spread_of_its_estimates() -> None:
    """Over 16 tables with outliers: neither too small nor swollen by the outliers."""
    fits = [fit_law(LatentsAndK, _noisy(seed), method="huber") for seed in range(16)]
    predictions = np.array([_error(fit) for fit in fits])
    doubts = [
        np.sqrt(np.einsum("mp,pq,mq->m", f.jacobian, f.centered_covariance, f.jacobian))
        for f in fits
    ]
    ratio = np.median(predictions.std(axis=0) / np.mean(doubts, axis=0))
    assert 0.6 < ratio < 1.5


def test_refits_of_a_robust_fit_are_robust() -> None:
    fit = fit_law(LatentsAndK, _noisy(3), method="huber")
    robust = bootstrap(fit, 400, seed=0)
    plain = bootstrap(fit_law(LatentsAndK, _noisy(3)), 400, seed=0)
    assert robust.share_unsettled < 0.01
    width = [np.median(np.log(b.high / b.low)) for b in (_band(robust), _band(plain))]
    assert width[0] < 0.5 * width[1]


def _band(refits):
    return refits.band(refits.fit.table.points)


def test_the_json_names_the_runs_far_off_and_the_method(tmp_path: Path) -> None:
    table, out = tmp_path / "runs.csv", tmp_path / "out.json"
    losses = losses_of(PLANTED, CELLS, 0.004)
    losses[[7, 31]] *= [1.4, 0.7]
    lines = [f"r{i},{c.n},{c.k},{c.tokens},{losses[i]}" for i, c in enumerate(CELLS)]
    table.write_text("\n".join(["run_id,n,k,tokens,loss", *lines]))
    arguments = ("--law", "l_nkdu", "--table", str(table), "--bootstrap", "0", "--json", str(out))
    assert fit_command((*arguments, "--method", "huber")) == 0
    found = json.loads(out.read_text())
    assert found["method"] == "huber"
    assert {"r7", "r31"} <= {row["run"] for row in found["robust"]["light_runs"]}
    assert all(row["weight"] < 0.5 for row in found["robust"]["light_runs"])
    assert found["robust"]["scale"] == pytest.approx(0.004, rel=0.6)
    assert found["variance"] == pytest.approx(found["robust"]["scale"] ** 2)
    assert fit_command(arguments) == 0
    assert json.loads(out.read_text())["robust"] is None


def test_a_floor_at_its_plateau_and_a_wrong_sign_are_named() -> None:
    n, k = (v.ravel() for v in np.meshgrid(2.0 ** np.arange(8, 14), [4.0, 8.0, 16.0, 32.0]))
    points = {"n": n, "k": k, "tokens": np.full_like(n, 1e9)}
    names = tuple(map(str, range(len(n))))
    bare = LatentsAndK(0.9, -0.2, -0.25, 0.0, -60.0, 0.0)
    fit = fit_law(LatentsAndK, RunTable(points, bare.predict(points), names, "loss", names))
    assert "known from above only" in bounds(fit)["zeta"]
    assert floor_share(fit, points) < 1e-3
    rising = LatentsKTokens(**{**_no_tilt(), "c": -0.3})
    losses = rising.predict(points_of(CELLS))
    table = RunTable(points_of(CELLS), losses, tuple(map(str, range(len(CELLS)))), "loss", losses)
    assert "is not above 0" in bounds(fit_law(LatentsKTokens, table))["c"]
    inner = fit_law(LatentsAndK, gpt4_table())
    assert bounds(inner) == {}
    column = np.exp(-1.3189 - 0.0965 * np.log(gpt4_table().points["k"]))
    share = float((column / inner.law.predict(gpt4_table().points)).max())
    assert floor_share(inner, gpt4_table().points) == pytest.approx(share, rel=1e-3)


def _no_tilt() -> dict[str, float]:
    return {name: value for name, value in vars(PLANTED).items() if name not in ("u", "k0")}


def test_replicates_give_the_noise_whatever_the_law() -> None:
    points = {axis: np.repeat(values, 4) for axis, values in points_of(CELLS).items()}
    rng = np.random.default_rng(0)
    loss = PLANTED.predict(points) * np.exp(0.01 * rng.standard_normal(4 * len(CELLS)))
    names = tuple(map(str, range(len(loss))))
    table = RunTable(points, loss, names, "loss", tuple(range(4)) * len(CELLS))
    pure = pure_error(table)
    assert pure is not None
    assert (pure.n_cells, pure.degrees_of_freedom) == (len(CELLS), 3 * len(CELLS))
    assert np.sqrt(pure.variance) == pytest.approx(0.01, rel=0.12)
    cell = np.log(loss[:4])
    one = pure_error(replace(table.select(np.arange(len(loss)) < 5)))
    assert one is not None
    assert one.variance == pytest.approx(np.var(cell, ddof=1))
    assert pure_error(table.select(np.arange(len(loss)) % 4 == 0)) is None
    fitted = fit_table(LatentsKTokensTilted, table, n_bootstrap=0)
    assert to_json(fitted)["pure_error"]["degrees_of_freedom"] == 3 * len(CELLS)
