from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from fabricate import PLANTED, demo_cells, points_of

from analysis.laws import LAWS
from analysis.laws.forms import Form
from analysis.laws.joint import (
    LatentsAndK,
    LatentsAndSubject,
    LatentsKPlusTokens,
    LatentsKTokens,
    LatentsKTokensTilted,
)
from analysis.laws.law import Law
from analysis.laws.powers import OfCompute, OfLatents, OfLatentsAndTokens, TokensToConvergence
from analysis.records.table import RunTable
from analysis.study.fitted import fit_table, to_json
from analysis.uncertainty.profile import floor_interval

_FIRST = {"alpha": -0.5, "beta_k": 0.26, "beta_n": -0.017, "gamma": -0.042}
_FLOOR = {"zeta": -1.32, "eta": -0.085}
_TOKENS = {"D0": 7e4, "s": 0.65, "c": 0.55, "n0": 1024.0}
_NESTED = {
    f"{law}_{change}": LAWS[f"{law}_{change}"](
        **{
            **{name: value for name, value in {**_FIRST, **_FLOOR}.items() if name not in dropped},
            **more,
        }
    )
    for change, dropped in (
        *(("no_floor", ("zeta", "eta")), ("constant_floor", ("eta",)), ("no_gamma", ("gamma",))),
    )
    for law, more in (
        *(("l_nk", {}), ("l_nkd", _TOKENS), ("l_nkdu", {**_TOKENS, "u": 0.2, "k0": 16.0})),
    )
}
LAW_VALUES: list[Law] = [
    LatentsAndK(**_FIRST, **_FLOOR),
    LatentsKTokens(**_FIRST, **_FLOOR, **_TOKENS),
    LatentsKTokensTilted(**_FIRST, **_FLOOR, **_TOKENS, u=0.2, k0=16.0),
    LatentsKPlusTokens(**_FIRST, **_FLOOR, tau=0.9, b=0.35, c=0.5),
    *_NESTED.values(),
    OfLatents(E=0.2, A=9.0, b=0.5),
    OfCompute(E=0.1, A=40.0, b=0.2),
    OfLatentsAndTokens(E=0.15, A=9.0, a=0.5, B=25.0, b=0.4),
    TokensToConvergence(D0=3e5, s=0.65, n0=1024.0),
    LatentsAndSubject(alpha=0.5, beta_s=-0.1, beta_n=-0.3, gamma=0.01, zeta=-3.0, eta=0.08),
]
WITH_TOKENS = ("l_nkd", "l_nkdu", "l_nkd_additive")  # all with the first law as their limit
_CELLS = points_of(demo_cells())
POINTS = {
    **_CELLS,
    "flops": 12 * 576 * _CELLS["n"] * _CELLS["tokens"],
    "subject": 1e7 * _CELLS["k"] ** 2,
}


def _by_the_formula(law: Law) -> np.ndarray:
    """The formulas of the paper and of docs/laws.md, typed out once more."""
    p, n, k, tokens = law.parameters, POINTS["n"], POINTS["k"], POINTS["tokens"]
    match law.name:
        case "l_n":
            return p["E"] + p["A"] * n ** -p["b"]
        case "l_c":
            return p["E"] + p["A"] * POINTS["flops"] ** -p["b"]
        case "l_nd":
            return p["E"] + p["A"] * n ** -p["a"] + p["B"] * tokens ** -p["b"]
        case "d_star":
            return p["D0"] * (n / 1024.0) ** p["s"]
    ln_n, ln_k = np.log(n), np.log(POINTS["subject"] if law.name == "l_s" else k)
    slope, gamma = p.get("beta_k", p.get("beta_s", np.nan)), p.get("gamma", 0.0)
    loss = np.exp(p["alpha"] + slope * ln_k + p["beta_n"] * ln_n + gamma * ln_k * ln_n)
    if "zeta" in p:
        loss += np.exp(p["zeta"] + p.get("eta", 0.0) * ln_k)
    if "D0" in p:
        tilt = (k / 16.0) ** p.get("u", 0.0)
        loss *= 1 + (p["D0"] * (n / 1024.0) ** p["s"] / tokens) ** p["c"] * tilt
    if "tau" in p:
        loss += np.exp(p["tau"]) * n ** p["b"] * tokens ** -p["c"]
    return loss


@pytest.mark.parametrize("law", LAW_VALUES, ids=lambda law: law.name)
def test_predict_is_the_formula(law: Law) -> None:
    np.testing.assert_allclose(law.predict(POINTS), _by_the_formula(law), rtol=1e-12)
    np.testing.assert_allclose(law.log_predict(POINTS), np.log(_by_the_formula(law)), atol=1e-12)


@pytest.mark.parametrize("law", LAW_VALUES, ids=lambda law: law.name)
def test_jacobian_is_the_slope_of_log_predict(law: Law) -> None:
    analytic = law.jacobian(POINTS)
    for column, (name, value) in enumerate(law.parameters.items()):
        step = 1e-5 * abs(value)
        up, down = (
            type(law)(**{**vars(law), name: value + sign * step}).log_predict(POINTS)
            for sign in (1, -1)
        )
        numeric = (up - down) / (2 * step)
        # Rounding of the differences is relative to the column, whose entries may be zero.
        tolerance = 1e-7 * np.abs(numeric).max()
        np.testing.assert_allclose(analytic[:, column], numeric, rtol=1e-6, atol=tolerance)
    assert np.linalg.matrix_rank(analytic) == len(law.parameters)


@pytest.mark.parametrize("law", LAW_VALUES, ids=lambda law: law.name)
def test_coefficients_and_parameters_are_inverse(law: Law) -> None:
    again = type(law).from_coefficients(law.coefficients(), {"n": 1024.0, "k": 16.0})
    np.testing.assert_allclose(list(again.parameters.values()), list(law.parameters.values()))


def test_reference_sizes_change_the_names_and_not_the_law() -> None:
    moved = type(PLANTED).from_coefficients(PLANTED.coefficients(), {"n": 4096.0, "k": 64.0})
    np.testing.assert_allclose(moved.predict(POINTS), PLANTED.predict(POINTS), rtol=1e-12)
    assert moved.parameters["D0"] > 2 * PLANTED.D0
    assert moved.reference == {"n0": 4096.0, "k0": 64.0}


def test_endless_training_gives_the_law_of_latents_and_k() -> None:
    endless = {**POINTS, "tokens": np.full_like(POINTS["tokens"], 1e30)}
    limit = LAW_VALUES[0].predict(POINTS)
    for law in (law for law in LAW_VALUES if law.name in WITH_TOKENS):
        np.testing.assert_allclose(law.predict(endless), limit, rtol=1e-10)
        assert (law.predict(POINTS) > limit * 1.01).all()


@pytest.mark.parametrize("name", LAWS)
def test_centering_moves_coefficients_and_not_the_value(name: str) -> None:
    law = next(law for law in LAW_VALUES if law.name == name)
    logs = {axis: np.log(POINTS[axis]) for axis in law.axes}
    center = {axis: float(values.mean()) for axis, values in logs.items()}
    centered = np.linalg.solve(law.form.uncenter(center), law.coefficients())
    design = law.form.design({axis: logs[axis] - center[axis] for axis in logs})
    np.testing.assert_allclose(design.log_value(centered), law.log_predict(POINTS), atol=1e-11)


def test_curvature_is_the_slope_of_the_jacobian() -> None:
    form: Form = PLANTED.form
    design = form.design({axis: np.log(POINTS[axis]) / 10 for axis in PLANTED.axes})
    rng = np.random.default_rng(0)
    at = rng.standard_normal((1, len(form.monomials)))
    weights = rng.standard_normal((1, len(POINTS["n"])))
    analytic = design.curvature(design.value_and_jacobian(at)[1], weights)[0]

    def gradient(coefficients: np.ndarray) -> np.ndarray:
        return weights[0] @ design.value_and_jacobian(coefficients)[1][0]

    steps = 1e-5 * np.eye(at.shape[1])
    numeric = [(gradient(at + step) - gradient(at - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(analytic, np.array(numeric), atol=1e-7)
    assert np.abs(analytic).max() > 0.1


def test_every_law_is_tested_and_has_units_and_a_formula_of_its_own() -> None:
    assert sorted(law.name for law in LAW_VALUES) == sorted(LAWS)
    for law in LAWS.values():
        assert set(law.units) >= set(law.parameter_names)
        assert set(law.positive) <= set(law.parameter_names)
        assert not set(law.axes) & set(law.constant_axes)
    for attribute in ("title", "formula"):
        assert len({getattr(law, attribute) for law in LAWS.values()}) == len(LAWS)


@pytest.mark.parametrize("law", LAW_VALUES, ids=lambda law: law.name)
def test_a_floor_column_is_that_of_the_floor(law: Law) -> None:
    """Without every other part, which all have their constant first, exp of it is what is left."""
    if law.floor_column is None:
        assert law.name.endswith("no_floor") or law.name == "d_star"
        return
    at_one = {axis: np.ones(1) for axis in law.axes}
    coefficients = law.coefficients()
    constants = [c for c, monomial in enumerate(law.form.monomials) if monomial == ()]
    coefficients[[c for c in constants if c != law.floor_column]] = -200.0
    design = law.form.design({axis: np.log(values) for axis, values in at_one.items()})
    floor = coefficients[law.floor_column]
    assert design.log_value(coefficients)[0] == pytest.approx(floor, abs=1e-12)
    named = law.parameters.get("E")
    assert floor == pytest.approx(law.parameters["zeta"] if named is None else np.log(named))


def _law_of_the_docs() -> type[Law]:
    """The example under "A law of your own" in docs/laws.md, run as it stands there."""
    text = (Path(__file__).parents[3] / "docs" / "laws.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    module = types.ModuleType("law_of_the_docs")
    sys.modules[module.__name__] = module  # where dataclasses look types up
    exec(compile(code, "docs/laws.md", "exec", flags=annotations.compiler_flag), vars(module))
    return module.SharedFloor


def test_a_law_of_ones_own_needs_no_more_than_its_class() -> None:
    law = _law_of_the_docs()
    truth = law(E=0.1, A=3.0, a=0.4, b=0.2)
    n, k = (v.ravel() for v in np.meshgrid(2.0 ** np.arange(8, 16), [4.0, 8.0, 16.0]))
    points = {"n": n, "k": k}
    np.testing.assert_allclose(truth.predict(points), 0.1 + 3.0 * n**-0.4 * k**-0.2, rtol=1e-12)
    noise = 1 + 0.003 * np.random.default_rng(0).standard_normal(len(n))
    names = tuple(map(str, range(len(n))))
    table = RunTable(points, truth.predict(points) * noise, names, "loss", names)
    fitted = fit_table(law, table, held_out=n > 2**14, n_bootstrap=200, method="huber")
    found = to_json(fitted)
    for name, value in truth.parameters.items():
        assert found["params"][name] == pytest.approx(value, abs=5 * found["se"][name])
    assert found["holdout"]["rms_log"] < 0.02
    assert found["bounds"] == {}
    assert floor_interval(fitted.fit).low < 0.1 < floor_interval(fitted.fit).high
