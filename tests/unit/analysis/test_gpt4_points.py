"""The figures that a fit of the paper's own GPT-4 points must give, and what must not move them."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from gpt4 import POINTS, gpt4_table, with_losses

from analysis.fit import fit_command
from analysis.fitting.fit import fit_law
from analysis.laws.joint import LatentsAndK
from analysis.records.table import RunTable

EXPECTED = {
    **{"alpha": -0.4224, "beta_k": 0.2397, "beta_n": -0.0271, "gamma": -0.0383},
    **{"zeta": -1.3189, "eta": -0.0965},
}
EXPECTED_ERRORS = {
    **{"alpha": 0.144, "beta_k": 0.031, "beta_n": 0.027, "gamma": 0.0053},
    **{"zeta": 0.21, "eta": 0.036},
}


def test_condition_numbers_with_and_without_centered_logs() -> None:
    """As docs/math.md states them: why fits work in centered logs."""
    fit = fit_law(LatentsAndK, gpt4_table())
    plain = fit.law.jacobian(fit.table.points)
    of_jacobian = [np.linalg.cond(j) for j in (plain, fit.jacobian)]
    of_normal = [np.linalg.cond(j.T @ j) for j in (plain, fit.jacobian)]
    assert of_jacobian == pytest.approx([4648, 54.4], rel=2e-3)
    assert of_normal == pytest.approx([2.16e7, 2964], rel=2e-3)


def _run(tmp_path: Path, *more: str) -> dict:
    out = tmp_path / "out.json"
    arguments = ("--law", "l_nk", "--table", str(POINTS), "--json", str(out), *more)
    assert fit_command(arguments) == 0
    return json.loads(out.read_text())


def test_parameters_errors_and_cost(tmp_path: Path) -> None:
    found = _run(tmp_path)
    for name, value in EXPECTED.items():
        assert found["params"][name] == pytest.approx(value, abs=5.1e-5)
    for name, error in EXPECTED_ERRORS.items():
        # The reference has two or three digits: half of its last one, or 2 %.
        assert found["se"][name] == pytest.approx(error, rel=0.02)
    assert found["half_sum_of_squares"] == pytest.approx(2.06479e-3, abs=5e-9)
    assert found["rms_log_residual"] == pytest.approx(0.00958, abs=5e-6)
    assert found["n_used"] == 45
    assert found["dropped"] == []
    assert found["holdout"] is None
    assert found["warnings"] == ["tokens_unknown"]


def test_covariance_belongs_to_the_named_parameters(tmp_path: Path) -> None:
    found = _run(tmp_path, "--bootstrap", "0")
    covariance = np.array(found["covariance"])
    names = list(found["params"])
    assert found["covariance_order"] == names
    errors = [found["se"][name] for name in names]
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), errors)
    # s^2 (J'J)^-1 with the Jacobian by the plain parameters, from the law itself.
    table = gpt4_table()
    jacobian = LatentsAndK(**found["params"]).jacobian(table.points)
    variance = 2 * found["half_sum_of_squares"] / (45 - 6)
    direct = variance * np.linalg.inv(jacobian.T @ jacobian)
    np.testing.assert_allclose(covariance, direct, rtol=1e-5)


def test_largest_n_held_out(tmp_path: Path) -> None:
    found = _run(tmp_path, "--holdout", "n>65536")
    assert found["n_used"] == 30
    assert found["holdout"]["n"] == 15
    assert found["holdout"]["in_pi95"] == 15
    assert found["holdout"]["rms_log"] == pytest.approx(0.0261, abs=5e-5)
    assert found["holdout"]["worst_log"] == pytest.approx(0.0701, abs=5e-5)


def test_bootstrap_intervals_hold_the_fit_and_are_repeatable(tmp_path: Path) -> None:
    first, again, other = (_run(tmp_path, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again
    assert first["ci95"] != other["ci95"]
    for name, (low, high) in first["ci95"].items():
        assert low < first["params"][name] < high
        assert high - low == pytest.approx(3.92 * first["se"][name], rel=0.6)


def test_row_order_does_not_matter() -> None:
    table = gpt4_table()
    shuffled = np.random.default_rng(0).permutation(len(table))
    points = {axis: values[shuffled] for axis, values in table.points.items()}
    names = tuple(table.runs[i] for i in shuffled)
    other = RunTable(points, table.loss[shuffled], names, "loss", table.seeds)
    first, second = fit_law(LatentsAndK, table), fit_law(LatentsAndK, other)
    np.testing.assert_allclose(
        second.law.predict(table.points), first.law.predict(table.points), rtol=1e-8
    )


def test_units_of_n_and_k_do_not_matter() -> None:
    table = gpt4_table()
    points = {"n": 7 * table.points["n"], "k": 3 * table.points["k"]}
    scaled = RunTable(points, table.loss, table.runs, "loss", table.seeds)
    first, second = fit_law(LatentsAndK, table), fit_law(LatentsAndK, scaled)
    np.testing.assert_allclose(
        second.law.predict(points), first.law.predict(table.points), rtol=1e-8
    )
    assert second.law.parameters["alpha"] != pytest.approx(first.law.parameters["alpha"], abs=0.1)


def test_printed_coefficients_are_not_the_optimum() -> None:
    """The paper's printed, rounded coefficients give rms 1.387 %: a forward-model check."""
    printed = LatentsAndK(-0.50, 0.26, -0.017, -0.042, -1.32, -0.085)
    table = gpt4_table()
    residuals = table.log_loss - printed.log_predict(table.points)
    assert np.sqrt(np.mean(residuals**2)) == pytest.approx(0.01387, abs=5e-6)


@pytest.mark.parametrize("seed", range(20))
def test_perturbed_tables_agree_with_an_independent_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = gpt4_table()
    noise = rng.choice([0.005, 0.02, 0.04]) * rng.standard_normal(len(table))
    perturbed = with_losses(table, table.loss * np.exp(noise))
    fit = fit_law(LatentsAndK, perturbed)
    cost, prediction = _dense_start_solver(perturbed)
    assert fit.half_sum_of_squares <= cost * (1 + 1e-7)
    assert cost <= fit.half_sum_of_squares * (1 + 1e-4)
    np.testing.assert_allclose(fit.log_predict(table.points), prediction, atol=2e-4)


def _dense_start_solver(table: RunTable) -> tuple[float, np.ndarray]:
    """Lowest half sum of squares and its prediction, by means unlike those of the package.

    Variable projection: on a dense grid of floors the first term is weighted linear least squares
    in its logs; the best of them are polished by damped Newton steps with numeric derivatives.
    """
    ln_k, ln_n = (np.log(table.points[axis] / table.points[axis].min()) for axis in ("k", "n"))
    features = np.column_stack([np.ones_like(ln_k), ln_k, ln_n, ln_k * ln_n])

    def predict(parameters: np.ndarray) -> np.ndarray:
        floor = parameters[4] + parameters[5] * ln_k
        return np.log(np.exp(features @ parameters[:4]) + np.exp(floor))

    def cost(parameters: np.ndarray) -> float:
        return 0.5 * float(np.sum((predict(parameters) - table.log_loss) ** 2))

    starts = []
    for zeta, eta in product(np.linspace(-4.0, -0.8, 12), np.linspace(-0.4, 0.2, 9)):
        rest = table.loss - np.exp(zeta + eta * ln_k)
        if (rest <= 0).any():
            continue
        weights = rest / table.loss
        first = np.linalg.lstsq(features * weights[:, None], np.log(rest) * weights, rcond=None)[0]
        starts.append(np.append(first, [zeta, eta]))
    best = sorted(starts, key=cost)[:6]
    polished = min((_polish(predict, table.log_loss, start) for start in best), key=cost)
    return cost(polished), predict(polished)


def _polish(predict, log_loss: np.ndarray, start: np.ndarray) -> np.ndarray:
    at, damping = start, 1e-3
    for _ in range(400):
        residuals = predict(at) - log_loss
        steps = 1e-6 * np.eye(len(at))
        jacobian = np.column_stack([(predict(at + s) - predict(at - s)) / 2e-6 for s in steps])
        normal = jacobian.T @ jacobian
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), jacobian.T @ residuals)
        better = np.sum((predict(at - step) - log_loss) ** 2) < residuals @ residuals
        at, damping = (at - step, damping / 5) if better else (at, damping * 5)
        if damping > 1e10:
            break
    return at


def test_a_link_is_followed_and_a_device_never_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "real.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    arguments = ("--law", "l_nk", "--table", str(POINTS), "--bootstrap", "0", "--json")
    assert fit_command((*arguments, str(link))) == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["law"] == "l_nk"
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    assert fit_command((*arguments, str(fifo))) == 2
    assert fifo.is_fifo()


def test_a_negative_seed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit_command(("--law", "l_nk", "--table", str(POINTS), "--seed", "-1")) == 2
    assert "--seed -1" in capsys.readouterr().err
