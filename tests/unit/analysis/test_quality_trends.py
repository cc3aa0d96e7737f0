"""Trends, turning points and laws of quality metrics, against plain restatements and plants."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from planted_quality import SIZES, TOKENS, frame_of, plant_quality, values_at
from scipy import stats

from analysis.quality.found import quality
from analysis.quality.law import laws_tried
from analysis.quality.metrics import QUALITIES, Quality
from analysis.quality.trend import Trend, trend
from analysis.quality.values import Axis, Values, change, values_of
from analysis.records.load import load_runs

Row = tuple[float, float, int, float]
"""n, k, seed and value."""
KL = Quality("downstream_kl", "downstream", "KL", "lower", relative=True)
AUC = Quality("probe_auc", "probes", "AUC", "higher")
SHIFT = Quality("refinement_shift", "refinement", "shift", "nearer 0")
DENSE = Quality("density_dense", "density", "dense", "")


def _values(rows: Sequence[Row], quality: Quality) -> Values:
    found = values_of(frame_of(rows, quality.column), quality, TOKENS)
    assert isinstance(found, Values)
    return found


def _trend(values: Values, axis: Axis) -> Trend:
    found = trend(values, axis)
    assert found is not None
    return found


def _grid(noise: float, seed: int, per_doubling: float = -0.05) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        (n, k, s, 0.7 + per_doubling * np.log2(n / 512) + 0.02 * k + noise * rng.standard_normal())
        for n in SIZES
        for k in (8, 16, 32)
        for s in (0, 1)
    ]


def test_the_slope_is_that_of_a_regression_with_a_level_for_each_k() -> None:
    values = _values(_grid(0.01, 0), AUC)
    found = _trend(values, "n")
    cells = list(values.of)
    design = np.array([[np.log2(c.n), c.k == 8, c.k == 16, c.k == 32] for c in cells], float)
    y = np.array([values.of[cell].mean() for cell in cells])
    coefficients, squares, *_ = np.linalg.lstsq(design, y)
    freedom = len(cells) - 4
    error = np.sqrt(squares[0] / freedom * np.linalg.inv(design.T @ design)[0, 0])
    half = stats.t.ppf(0.975, freedom) * error
    assert found.slope == pytest.approx(coefficients[0])
    assert found.interval == pytest.approx((coefficients[0] - half, coefficients[0] + half))


def test_relative_changes_are_of_ln() -> None:
    rows = [(n, k, 0, 0.3 * n**-0.25 * k) for n in SIZES for k in (8, 16)]
    assert _trend(_values(rows, KL), "n").slope == pytest.approx(-0.25 * np.log(2))
    assert _trend(_values(rows, KL), "k").slope == pytest.approx(np.log(2))
    below = [*rows[:-1], (*rows[-1][:3], -0.1)]
    assert not _values(below, KL).relative
    assert _values(rows, KL).relative
    assert laws_tried(_values(below, KL))[0].objection == "some values are not above 0"


def test_the_interval_of_a_slope_covers_it() -> None:
    slopes = [_trend(_values(_grid(0.02, seed), AUC), "n").interval for seed in range(120)]
    inside = [bounds is not None and bounds.low <= -0.05 <= bounds.high for bounds in slopes]
    assert 0.88 <= np.mean(inside) <= 0.99


def test_steps_are_judged_by_the_scatter_of_seeds() -> None:
    rows = [(512, 8, 0, 0.50), (512, 8, 1, 0.52), (1024, 8, 0, 0.80), (1024, 8, 1, 0.82)]
    rows += [(2048, 8, 0, 0.805), (2048, 8, 1, 0.825)]
    values = _values(rows, AUC)
    assert dict(_trend(values, "n").counts) == {"better": 1, "within scatter": 1}
    cells = sorted(values.of)
    apart = change(values, cells[0], cells[1])
    # Three cells of two seeds each, sd 0.0141 in all: t with 3 degrees of freedom.
    half = stats.t.ppf(0.975, 3) * np.sqrt(2 * 0.01**2 * (1 / 2 + 1 / 2))
    assert apart.interval == pytest.approx((0.3 - half, 0.3 + half))
    lower = Quality("probe_auc", "probes", "AUC", "lower")
    assert dict(_trend(_values(rows, lower), "n").counts) == {"worse": 1, "within scatter": 1}


def test_without_a_second_seed_nothing_is_within_scatter() -> None:
    values = _values([(512, 8, 0, 0.5), (1024, 8, 0, 0.5001), (2048, 8, 0, 0.4)], AUC)
    assert values.noise is None
    assert dict(_trend(values, "n").counts) == {"better": 1, "worse": 1}
    assert not _trend(values, "n").turns


@pytest.mark.parametrize(
    ("quality", "means", "turns"),
    [
        (AUC, (0.5, 0.7, 0.6), [(512, 16)]),
        (AUC, (0.5, 0.601, 0.6), []),
        (AUC, (0.5, 0.6, 0.7), []),
        (KL, (0.5, 0.3, 0.6), [(512, 16)]),
        (KL, (0.3, 0.5, 0.3), []),
        (SHIFT, (-0.5, 0.05, 0.6), [(512, 16)]),
        (DENSE, (0.5, 0.3, 0.6), []),
    ],
)
def test_a_metric_turns_where_its_best_is_inside_beyond_scatter(
    quality: Quality, means: tuple[float, ...], turns: list[tuple[int, int]]
) -> None:
    pairs = zip((8, 16, 32), means, strict=True)
    rows = [(512, k, s, mean + 0.005 * (2 * s - 1)) for k, mean in pairs for s in (0, 1)]
    assert [tuple(turn) for turn in _trend(_values(rows, quality), "k").turns] == turns


def test_a_metric_near_zero_is_better_nearer_to_it() -> None:
    rows = [(n, 8, s, y) for n, y in ((512, -0.3), (1024, 0.1), (2048, 0.2)) for s in (0, 1)]
    assert dict(_trend(_values(rows, SHIFT), "n").counts) == {"better": 1, "worse": 1}
    assert dict(_trend(_values(rows, DENSE), "n").counts) == {"up": 2}


def test_a_planted_law_is_found_and_a_bend_is_none(tmp_path: Path) -> None:
    def law(n: float, k: float) -> float:
        return 2.0 * n**-0.3 * k**-0.2

    def bent(n: float, k: float) -> float:
        return law(n, k) * np.exp(0.4 * np.sin(1.5 * np.log2(n)))

    metrics = {"downstream_kl": law, "probe_loss": bent}
    plant_quality(tmp_path, metrics, noise=0.01)
    held, *others = laws_tried(values_at(tmp_path, QUALITIES[0]))
    assert held.holds
    assert not others
    assert held.fitted is not None
    assert held.fitted.law.parameters["beta_n"] == pytest.approx(-0.3, abs=0.05)
    probe = next(one for one in QUALITIES if one.column == "probe_loss")
    assert not any(one.holds for one in laws_tried(values_at(tmp_path, probe)))
    auc = next(one for one in QUALITIES if one.column == "probe_auc")
    assert not auc.takes_law


def test_few_runs_have_no_law_and_say_why(tmp_path: Path) -> None:
    plant_quality(tmp_path, {"downstream_kl": lambda n, k: 1 / n}, sizes=(512, 1024))
    tried = laws_tried(values_at(tmp_path, QUALITIES[0]))
    assert tried
    assert all("n < 1024" in one.objection or "level" in one.objection for one in tried)


def test_a_metric_that_does_not_move_has_no_law(tmp_path: Path) -> None:
    """Any law fits it, with exponents of nothing."""
    plant_quality(tmp_path, {"downstream_kl": lambda n, k: 0.5}, noise=0.01)
    (tried,) = laws_tried(values_at(tmp_path, QUALITIES[0]))
    assert "no effect of n" in tried.objection


def test_a_law_must_say_more_than_the_n_before(tmp_path: Path) -> None:
    """A fall that ends below the largest n: held out, it is where the n before was."""
    plant_quality(
        tmp_path,
        {"downstream_kl": lambda n, k: min(n, 2048) ** -0.05},
        noise=0.015,
        seeds=(0, 1, 2),
    )
    tried = laws_tried(values_at(tmp_path, QUALITIES[0]))
    assert not any(one.holds for one in tried)
    before = np.log(2048 / 4096) * 0.05
    assert any(one.carried < abs(before) for one in tried)


def test_without_seeds_no_law_is_claimed(tmp_path: Path) -> None:
    plant_quality(tmp_path, {"downstream_kl": lambda n, k: n**-0.3}, noise=0.01, seeds=(0,))
    tried = laws_tried(values_at(tmp_path, QUALITIES[0]))
    assert all("cannot be tested" in one.objection for one in tried)


def test_numbers_measured_in_several_ways_are_not_compared(tmp_path: Path) -> None:
    one = {"downstream_kl": lambda n, k: 1 / n, "probe_auc": lambda n, k: 0.5}
    plant_quality(tmp_path, one, measured_as={"downstream": "aaa", "probes": "ppp"})
    again = {"measured_as": {"downstream": "bbb", "probes": "ppp"}, "sizes": (512,)}
    plant_quality(tmp_path, one, **again)
    found = quality(load_runs(tmp_path))
    assert [one.values.quality.column for one in found.metrics] == ["probe_auc"]
    assert "aaa (18 runs), bbb (6 runs)" in found.refusals["downstream_kl"]


def test_all_metrics_are_of_one_budget_and_the_rest_is_counted() -> None:
    """Most was measured at 1M; the run of 2M has one metric more."""
    frame = frame_of([(n, 8, 0, 0.5) for n in (512, 1024, 4096, 2048)], "probe_auc")
    frame["tokens"] = frame["tokens_requested"] = [1e6, 1e6, 1e6, 2e6]
    frame["omp_gap"] = [np.nan, np.nan, np.nan, 1.5]
    found = quality(frame)
    assert [one.values.quality.column for one in found.metrics] == ["probe_auc"]
    assert found.n_left_out == 1
    assert "1 evaluated run is of other budgets" in found.left_out
    (metric,) = quality(frame_of([(n, 8, 0, 0.5) for n in (512, 1024)], "omp_gap")).metrics
    assert metric.laws[0].objection == "too few cells to see an effect of n"


def test_runs_that_differ_in_more_than_the_seed_are_no_seeds() -> None:
    rows = [(512, 8, 0, 0.5), (512, 8, 0, 0.6), (1024, 8, 0, 0.4)]
    refusal = values_of(frame_of(rows, KL.column), KL, TOKENS)
    assert isinstance(refusal, str)
    assert "n = 512, k = 8 and seed 0" in refusal


def test_runs_of_mostly_dead_latents_are_shown_and_not_fitted(tmp_path: Path) -> None:
    plant_quality(tmp_path, {"downstream_kl": lambda n, k: n**-0.3}, noise=0.01)
    for path in tmp_path.glob("00512008*/record.json"):
        row = json.loads(path.read_text())
        row["result"] |= {"dead_fraction": 0.9, "silent_fraction_eval": 0.8}
        path.write_text(json.dumps(row))
    found = quality(load_runs(tmp_path))
    (kl,) = found.metrics
    assert (kl.values.n_runs, found.n_dead) == (24, 2)
    assert kl.law is not None
    assert kl.law.fitted is not None
    assert len(kl.law.fitted.fit.table) == 22


def test_seeds_that_are_equal_to_the_last_digit_say_nothing_of_scatter() -> None:
    wave = {512: 0.7, 1024: 0.6, 2048: 0.8, 4096: 0.7}
    values = _values([(n, k, s, wave[n]) for n in SIZES for k in (8, 16) for s in (0, 1)], KL)
    assert values.noise is None
    found = _trend(values, "n")
    assert found.turns == ()
    assert all(end.interval is None for _, end in found.ends)


@pytest.mark.parametrize("metric", [KL, AUC, SHIFT, DENSE])
def test_what_does_not_change_is_neither_better_nor_worse(metric: Quality) -> None:
    values = _values([(n, k, 0, 0.25) for n in SIZES for k in (8, 16)], metric)
    assert _trend(values, "n").counts == {"same": 6}


def test_as_far_from_0_on_the_other_side_is_no_change_of_quality() -> None:
    rows = [(n, 8, 0, sign * 0.25) for n, sign in zip(SIZES, (1, -1, 1, -1), strict=True)]
    assert _trend(_values(rows, SHIFT), "n").counts == {"same": 3}


@pytest.mark.parametrize(
    ("odd", "words"),
    [("x", "no numbers, like 'x'"), ("nan", "no numbers, like 'nan'"), (1e200, "beyond 1e\\+100")],
)
def test_values_that_are_none_are_named_and_cost_no_other_metric(odd: object, words: str) -> None:
    frame = frame_of(_grid(0.01, 0), KL.column)
    column = list(frame[KL.column])
    # Text in one line of a table makes text of all.
    frame[KL.column] = [odd, *(map(str, column[1:]) if isinstance(odd, str) else column[1:])]
    frame[AUC.column] = column
    refusal = values_of(frame, KL, TOKENS)
    assert isinstance(refusal, str)
    assert re.search(words, refusal)
    found = quality(frame)
    assert [one.values.quality.column for one in found.metrics] == [AUC.column]
    assert set(found.refusals) == {KL.column}
