"""Frontiers against a grid, a closed form, refits and a file; what is refused, by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import PLANTED, demo_cells
from planted_fit import D_MODEL, planted_fit, stored_as

from analysis.command import write_json
from analysis.errors import TableError
from analysis.frontier import frontier_command
from analysis.laws.forms import CONSTANT, Form
from analysis.laws.joint import LatentsAndK, LatentsKPlusTokens, LatentsKTokens
from analysis.laws.law import Law
from analysis.laws.powers import OfLatentsAndTokens
from analysis.laws.tokens import token_terms
from analysis.planning.compute import Convention
from analysis.planning.frontier import (
    COMPUTE_OPTIMAL,
    Exponents,
    Frontier,
    default_budgets,
    frontier,
)
from analysis.planning.frontier_table import exponent_rows, frontier_json, frontier_text, rows
from analysis.planning.stored import of_fitted
from analysis.planning.variants import (
    Estimate,
    NoVariants,
    Nudges,
    Resampled,
    exponential,
    nudged,
    resampled,
)
from analysis.study.fitted import FittedLaw, to_json
from scaling.budget import flops_per_token_dense, flops_per_token_sparse

DENSE, SPARSE = Convention("dense", D_MODEL), Convention("sparse", D_MODEL)
PLAIN = LatentsKTokens(**{n: v for n, v in vars(PLANTED).items() if n not in ("u", "k0")})
LIMIT = LatentsAndK(**{name: PLANTED.parameters[name] for name in LatentsAndK.parameter_names})
ADDITIVE = LatentsKPlusTokens(**LIMIT.parameters, tau=1.0, b=0.35, c=0.5)


# E + A n^-a + B D^-b at one k: its best n is known in closed form.
POWERS = OfLatentsAndTokens(E=0.05, A=4.0, a=0.35, B=40.0, b=0.45)
BUDGETS = [1e13, 3e13, 1e14]


@pytest.mark.parametrize("convention", [DENSE, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("law", [PLANTED, PLAIN, ADDITIVE], ids=lambda law: law.name)
def test_no_size_on_a_fine_grid_is_better(law: Law, convention: Convention) -> None:
    found = frontier(stored_as(law), [3e12, 1e13], [16.0, 32.0], convention, n_range=(64, 1e6))
    sizes = np.exp(np.arange(np.log(64.0), np.log(1e6), 2e-4))
    best = [point for point in found.points if point.rule == "compute-optimal"]
    assert len(best) == 4
    for point in best:
        k = np.full_like(sizes, point.k)
        tokens = point.flops / convention.per_token(sizes, k)
        loss = law.predict({"n": sizes, "k": k, "tokens": tokens})
        at = int(np.argmin(loss))
        assert 0 < at < len(sizes) - 1
        assert point.n.value == pytest.approx(sizes[at], rel=3e-4)
        assert point.tokens.value == pytest.approx(tokens[at], rel=3e-4)
        assert point.loss.value == pytest.approx(loss[at], rel=1e-7)
        assert point.loss.value <= loss[at] * (1 + 1e-12)


def test_the_closed_form_of_two_powers() -> None:
    found = frontier(stored_as(POWERS), BUDGETS, [32.0], DENSE, n_range=(1, 1e7))
    best = [point for point in found.points if point.rule == "compute-optimal"]
    for point in best:
        assert point.n.value == pytest.approx(np.exp(_log_best(POWERS, point.flops)), rel=1e-5)
    line = found.exponents[0]
    assert line.of_n.value == pytest.approx(0.45 / (0.35 + 0.45), abs=1e-6)
    assert line.of_tokens.value == pytest.approx(0.35 / (0.35 + 0.45), abs=1e-6)


def _log_best(law: OfLatentsAndTokens, flops: float) -> float:
    """ln n of the least A n^-a + B (12 n d / C)^b, from its derivative."""
    balance = np.log(law.a * law.A) - np.log(law.b * law.B)
    return float((balance + law.b * np.log(flops / (12 * D_MODEL))) / (law.a + law.b))


def test_intervals_are_those_of_the_closed_forms_gradient() -> None:
    stored = stored_as(POWERS, relative_doubt=0.02)
    point = frontier(stored, [1e14], [32.0], DENSE, n_range=(1, 1e7)).points[0]
    assert stored.covariance is not None
    gradient = []
    for name, value in POWERS.parameters.items():
        ends = [replace(POWERS, **{name: value * (1 + sign * 1e-5)}) for sign in (1, -1)]
        above, below = (_log_best(law, 1e14) for law in ends)
        gradient.append((above - below) / (2e-5 * value))
    error = np.sqrt(gradient @ stored.covariance @ gradient)
    t = 2.0422725  # Student's t of 30 degrees of freedom at 97.5%
    assert np.log(point.n.high / point.n.value) == pytest.approx(t * error, rel=2e-3)
    assert np.log(point.n.value / point.n.low) == pytest.approx(t * error, rel=2e-3)
    # D = C / (12 n d): the same doubt the other way round.
    assert np.log(point.tokens.high / point.tokens.value) == pytest.approx(t * error, rel=2e-3)


@pytest.mark.parametrize("law", [PLANTED, PLAIN, ADDITIVE, POWERS], ids=lambda law: law.name)
@pytest.mark.parametrize("convention", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_near_convergence_the_loss_is_that_share_above_its_limit(
    law: Law, convention: Convention
) -> None:
    stored = stored_as(law)
    found = frontier(stored, [1e14], [16.0], convention, excess=0.1, n_range=(1, 1e7))
    point = next(p for p in found.points if p.rule == "to 10% above its limit")
    cost = float(convention.per_token(point.n.value, 16.0))
    assert point.tokens.value * cost == pytest.approx(1e14, rel=1e-9)
    here = {"n": point.n.value, "k": 16.0, "tokens": point.tokens.value}
    points = {axis: np.array([here[axis]] * 2) for axis in law.axes}
    points["tokens"][1] = 1e60
    loss, limit = law.predict(points)
    assert loss == pytest.approx(1.1 * limit, rel=1e-6)
    assert point.loss.value == pytest.approx(loss, rel=1e-9)


def test_the_budget_exponent_sets_the_second_frontier() -> None:
    """Tokens to convergence ~ n^s, so that C ~ n^(1+s)."""
    found = frontier(stored_as(PLAIN), BUDGETS, [16.0], DENSE, n_range=(1, 1e7))
    line = found.exponents[-1]
    assert line.rule == "to 5% above its limit"
    assert line.of_n.value == pytest.approx(1 / (1 + PLAIN.s), abs=1e-9)
    assert line.of_tokens.value == pytest.approx(PLAIN.s / (1 + PLAIN.s), abs=1e-9)


@pytest.fixture(scope="module")
def fitted() -> FittedLaw:
    return planted_fit(PLAIN, n_bootstrap=1000)


def test_the_delta_method_agrees_with_refits(fitted: FittedLaw) -> None:
    stored = of_fitted(fitted, D_MODEL)
    assert fitted.refits is not None
    plans = [
        frontier(stored, [1e13], [16.0], DENSE, n_range=(1, 1e6), variants=variants).points
        for variants in (nudged(stored), resampled(fitted.refits))
    ]
    for delta, refits in zip(*plans, strict=True):
        assert delta.n.value == refits.n.value
        for name in ("n", "tokens", "loss"):
            ours, theirs = (getattr(point, name) for point in (delta, refits))
            assert theirs.low < ours.value < theirs.high
            widths = [np.log(e.high / e.low) for e in (ours, theirs)]
            assert 0.6 < widths[0] / widths[1] < 1.6


def test_why_laws_are_not_drawn_from_the_covariance(fitted: FittedLaw) -> None:
    """ln L is convex in the coefficients: laws drawn about the fit lie above it, by more than the
    law's own doubt, while refits lie about it."""
    stored, points = of_fitted(fitted), fitted.fit.table.points
    rng = np.random.default_rng(0)
    spread = stored.coefficient_covariance()
    drawn = rng.multivariate_normal(stored.law.coefficients(), spread, 500, method="eigh")
    assert fitted.refits is not None
    design = stored.law.form.design({axis: np.log(v) for axis, v in points.items()})
    value = design.log_value(stored.law.coefficients())
    doubt = np.sqrt(stored.doubt(points))
    above, about = (
        np.median((np.median(design.log_value(laws), axis=0) - value) / doubt)
        for laws in (drawn, resampled(fitted.refits).coefficients)
    )
    assert above > 1.0
    assert abs(about) < 0.3


def test_edges_are_refused_by_name() -> None:
    found = frontier(stored_as(PLANTED), [1e9, 1e13, 1e20], [16.0], DENSE)
    assert [point.flops for point in found.points] == [1e13, 1e13]
    assert [(r.flops, r.where) for r in found.refused] == [
        (1e9, "at or below n = 64"),
        (1e20, "at or above n = 16384"),
    ] * 2
    assert "(runs have n 256 to 4096)" in found.refused[0].message
    text = frontier_text(found)
    assert "refused: 1e+20 FLOPs at k = 16, compute-optimal: at or above n = 16384" in text
    wider = frontier(stored_as(PLANTED), [1e20], [16.0], DENSE, n_range=(1e3, 1e9))
    assert not wider.refused
    assert "above" in wider.points[0].outside


@pytest.mark.parametrize("flops", [1e9, 1e13, 1e20])
def test_where_larger_sizes_train_for_less_the_upper_edge_is_named(flops: float) -> None:
    """Tokens to convergence ~ n^-1.5: what trains one size trains every larger one."""
    found = frontier(stored_as(replace(PLAIN, s=-1.5)), [flops], [16.0], DENSE)
    refused = next(r for r in found.refused if r.rule == "to 5% above its limit")
    assert refused.where == "at or above n = 16384"
    assert "takes fewer FLOPs the larger n is" in refused.message


def test_doubt_beyond_every_size_has_no_end() -> None:
    """A token exponent that may be zero: some of the laws have no best size."""
    stored = stored_as(PLANTED, relative_doubt=1.0)
    flat = next(p for p in frontier(stored, [1e13], [16.0], DENSE).points)
    assert flat.n.low < flat.n.value < flat.n.high
    infinite = Nudges(np.zeros((4, 2)), 2.0).interval(1.0, np.array([1.0, np.inf, 1.0, 1.0]))
    assert exponential(infinite) == (np.e, 0.0, np.inf)
    percentiles = Resampled(np.zeros((5, 2))).interval(0.0, np.array([-np.inf, -1, 0, 1, np.inf]))
    assert percentiles[1:] == (-np.inf, np.inf)


def test_cells_say_where_an_interval_has_no_end() -> None:
    point = frontier(stored_as(PLANTED), [1e13], [16.0], DENSE).points[0]
    open_ended = replace(point, n=Estimate(2000.0, 0.0, np.inf), tokens=Estimate(1e6, 1e5, np.inf))
    steep = Exponents("rule", 16.0, Estimate(0.3, -0.2, 0.8), Estimate(0.7, -np.inf, np.inf))
    shown = Frontier((open_ended,), (steep,), (), DENSE, "L")
    (cells,), (exponents,) = rows(shown), exponent_rows(shown)
    assert cells[3:5] == ("2000 [no end, no end]", "1M [100k, no end]")
    assert exponents[2:] == ("0.300 [-0.200, 0.800]", "0.700 [no end, no end]")
    assert frontier_json(shown)["exponents"][0]["of_tokens_ci95"] == [None, None]


def test_without_a_covariance_there_are_no_intervals() -> None:
    stored = stored_as(PLANTED, covariance=None)
    assert isinstance(nudged(stored), NoVariants)
    found = frontier(stored, BUDGETS, [16.0], DENSE)
    point = found.points[0]
    assert np.isnan([point.n.low, point.tokens.high, point.loss.low]).all()
    assert "[" not in frontier_text(found).splitlines()[2]
    assert frontier_json(found)["points"][0]["n_latents_ci95"] == [None, None]


def test_flops_are_those_of_the_records() -> None:
    for n, k in ((512, 8), (4096, 64)):
        assert float(DENSE.per_token(n, k)) == flops_per_token_dense(n, D_MODEL)
        assert float(SPARSE.per_token(n, k)) == flops_per_token_sparse(n, D_MODEL, k)


def test_default_budgets_surround_the_runs() -> None:
    """Runs of 6e11 to 2.8e13 dense FLOPs: from the middle to ten times the largest."""
    assert default_budgets(stored_as(PLANTED), DENSE) == [1e13, 1e14]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"law": LIMIT}, "does not hold both n and tokens"),
        ({"law": ADDITIVE, "flip": True}, r"more tokens do not lower the loss \(c = -0.5\)"),
        ({"budgets": []}, "numbers above 0"),
        ({"ks": [0.0]}, "numbers above 0"),
        ({"excess": 0.0}, "not between 0 and 10"),
        ({"n_range": (100.0, 10.0)}, "are no range"),
        ({"ranges": {}}, "does not say its range of n"),
        ({"law": POWERS, "ranges": {"n": (1, 9), "k": (8, 8)}}, "fitted at k = 8 only"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_what_has_no_frontier_is_refused(change: dict[str, Any], message: str) -> None:
    law = change.pop("law", PLANTED)
    if change.pop("flip", False):
        law = LatentsKPlusTokens(**{**vars(law), "c": -0.5})
    ranges = {"ranges": change.pop("ranges")} if "ranges" in change else {}
    asked = {"budgets": [1e13], "ks": [16.0], "convention": DENSE, **change}
    with pytest.raises(TableError, match=message):
        frontier(stored_as(law, **ranges), **asked)


@pytest.mark.parametrize(
    "form",
    [
        Form((((CONSTANT,), (CONSTANT, ("n",))),)),
        Form((((CONSTANT,), (CONSTANT, ("tokens",)), (CONSTANT, ("tokens",))),)),
        Form((((CONSTANT, ("tokens",)),),)),
        Form((((CONSTANT,), (CONSTANT, ("n", "tokens"))),)),
    ],
    ids=["no tokens", "two terms", "no limit", "a product"],
)
def test_laws_without_a_limit_of_endless_training(form: Form) -> None:
    with pytest.raises(TableError, match="this law"):
        token_terms(form)


@pytest.mark.parametrize(("name", "d_model"), [("flat", 64), ("dense", 0)])
def test_conventions_are_named(name: str, d_model: int) -> None:
    with pytest.raises(TableError, match="choose one" if d_model else "not above 0"):
        Convention(name, d_model)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "fit.json", tmp_path / "frontier.json"
    write_json(path, to_json(planted_fit(PLAIN, demo_cells())))
    words = [str(path), "--d-model", "576", "--k", "16,32", "--json", str(out)]
    assert frontier_command([*words, "--flops", "1e13,3e13,1e20"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("compute-optimal") == 4 + 2 + 2  # points, exponents, refusals
    written = json.loads(out.read_text())
    assert [p["k"] for p in written["points"]] == [16, 16, 32, 32] * 2
    first = written["points"][0]
    assert first["n_latents_ci95"][0] < first["n_latents"] < first["n_latents_ci95"][1]
    assert len(written["refused"]) == 4
    assert frontier_command(words) == 0  # budgets by default


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --d-model"),
        (["--d-model", "576", "--flops", "1e30"], "is no number above 0"),
        (["--d-model", "576", "--flops", "1e25"], "refused: 1e+25 FLOPs at k = 4"),
        (["--d-model", "576", "--n-range", "1k"], "write LOW,HIGH"),
        (["--d-model", "576", "--k", "x"], "--k='x' is no number"),
        (["--d-model", "0"], "--d-model 0 is no width"),
        (["--d-model", "9" * 400], "is no width"),
        (["--d-model", "576", "--k", "1B"], "k = 1e+09 leaves no size to look for"),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "fit.json", tmp_path / "out.json"
    write_json(path, to_json(planted_fit(PLAIN, demo_cells())))
    assert frontier_command([str(path), *words, "--json", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_no_size_is_below_k() -> None:
    """A budget whose lowest loss would have fewer latents than are active is refused."""
    free = frontier(stored_as(PLANTED), [1e9], [4.0], DENSE, n_range=(4.0, 4096.0))
    best = next(p.n.value for p in free.points if p.rule == COMPUTE_OPTIMAL)
    held = frontier(stored_as(PLANTED), [1e9], [2 * best], DENSE, n_range=(4.0, 4096.0))
    assert all(point.n.value > point.k for point in held.points)
    assert held.refused[0].where == f"at or below n = {2 * best:.0f}"
