"""Architectures compared at equal L0, on planted frontiers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from planted_frontiers import B_N, LEVELS, ask_for_l0, plant, planted_loss

from analysis.equal_l0 import equal_l0_command
from analysis.errors import TableError
from analysis.records.load import load_runs
from analysis.report.plots.sparsity import frontiers, loss_at_l0
from analysis.report.write import main as report
from analysis.sparsity.comparison import Comparison, compare, comparison_json
from analysis.sparsity.curve import Curve, falling
from analysis.sparsity.equal import interval, readings, to_reference
from analysis.sparsity.power import power_of_n
from analysis.sparsity.series import Chosen, Place, Series


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("runs") / "architectures")


@pytest.fixture(scope="module")
def found(sweep: Path) -> Comparison:
    return compare(load_runs(sweep, allow="autoencoder"), l0s=[32.0])


def test_runs_that_were_asked_for_an_l0_make_a_curve_too(tmp_path: Path) -> None:
    """All of one penalty: they differ in the L0 that it asks for."""
    plant(tmp_path, ("topk", "relu"), (1024,), (0,), noise=0.0)
    ask_for_l0(tmp_path)
    (at,) = compare(load_runs(tmp_path, allow="autoencoder"), l0s=[32.0]).targets
    losses = {one.place.arm: one.loss for one in at.found}
    wanted = {arm: planted_loss(arm, 1024, 32.0) for arm in ("topk", "relu")}
    assert losses == pytest.approx(wanted, rel=0.01)


def test_a_curve_goes_through_its_points_and_never_rises() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        l0 = np.sort(rng.uniform(4, 100, 6))
        loss = np.exp(rng.normal(-1.5, 0.3, 6))
        curve = Curve.through(l0, loss)
        grid = np.geomspace(*curve.range, 40)[1:-1]
        read = np.array([at.log_loss for x in grid if (at := curve.at(float(x)))])
        assert len(read) == len(grid)
        assert (np.diff(read) <= 1e-12).all()
    l0, loss = np.array([8.0, 16.0, 64.0]), np.array([0.5, 0.4, 0.2])
    curve = Curve.through(l0, loss)
    at = [curve.at(x) for x in (8.0, 16.0, 64.0)]
    assert [np.exp(one.log_loss) for one in at if one] == pytest.approx(loss.tolist())
    assert curve.moved == 0.0


def test_rises_are_pooled_and_told() -> None:
    assert falling(np.array([3.0, 1.0, 2.0]), np.ones(3)).tolist() == [3.0, 1.5, 1.5]
    assert falling(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.0])).tolist() == [2.25] * 3
    curve = Curve.through(np.array([8.0, 16.0, 32.0]), np.array([0.4, 0.2, 0.22]))
    assert curve.moved == pytest.approx(np.log(0.22 / 0.2) / 2)


def test_nothing_is_extrapolated_but_an_l0_counts_for_what_it_nearly_is() -> None:
    curve = Curve.through(np.array([16.0, 64.0]), np.array([0.4, 0.2]))
    assert curve.at(15.0) is None
    assert curve.at(70.0) is None
    near = curve.at(15.9)
    assert near is not None
    assert near.log_loss == pytest.approx(np.log(0.4) + 0.5 * np.log(16 / 15.9))
    alone = Curve.through(np.array([31.6]), np.array([0.3])).at(32.0)
    assert alone is not None
    assert (alone.log_loss, alone.doubt) == pytest.approx((np.log(0.3), np.log(32 / 31.6)))
    assert Curve.through(np.array([25.0]), np.array([0.3])).at(32.0) is None


def test_planted_losses_and_differences_are_found(found: Comparison) -> None:
    (target,) = found.targets
    assert found.reference == "topk"
    assert len(target.found) == 9
    inside: list[bool] = []
    for at in target.found:
        true = planted_loss(at.place.arm, at.place.n_latents, 32.0)
        ends, apart = target.interval(at), target.difference(at, "topk")
        assert ends is not None
        assert (ends.high - ends.low) / true < 0.02
        assert at.loss == pytest.approx(true, rel=0.012)
        inside.append(ends.low < true < ends.high)
        assert (apart is None) == (at.place.arm == "topk")
        if apart is not None:
            ratio, over = LEVELS[at.place.arm] / LEVELS["topk"] - 1.0, apart.share_interval
            assert over is not None
            assert over.high - over.low < 0.03
            inside.append(over.low < ratio < over.high)
    assert sum(inside) >= 13  # of 15 intervals of 95%


def test_laws_in_n_at_one_l0(found: Comparison) -> None:
    (target,) = found.targets
    assert [law.arm for law in target.powers] == ["gated", "relu", "topk"]
    for law in target.powers:
        assert law.b_interval.low < B_N < law.b_interval.high
        assert law.b_interval.high - law.b_interval.low < 0.03
        assert law.at(law.sizes) == pytest.approx(law.A * law.sizes**-law.b)


def _planted(rng: np.random.Generator, seeds: int, noise: float, shared: float) -> Chosen:
    """Three n, two arms; seeds err together in both arms (shared) and apart (noise)."""
    series: list[Series] = []
    for n in (512, 1024, 2048):
        together = shared * rng.standard_normal(seeds)
        for arm, level in (("a", 0.2), ("b", 0.25)):
            apart = noise * rng.standard_normal(seeds)
            for seed in range(seeds):
                l0 = np.array([10.0, 20.0, 40.0, 80.0]) * (1 + 0.02 * rng.standard_normal())
                error = np.exp(together[seed] + apart[seed])
                loss = level * (l0 / 32) ** -0.45 * (n / 1024) ** -B_N * error
                series.append(Series(Place(arm, n, (1.0, 1.0)), seed, l0, loss))
    return Chosen(series, 1e6, 0, ("autoencoder",))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    def inside(rng: np.random.Generator) -> list[bool]:
        found, _ = readings(_planted(rng, 3, 0.01, 0.02), 32.0)
        at = {(one.place.arm, one.place.n_latents): one for one in found}
        loss = interval(at["b", 1024], found)
        apart = to_reference(at["b", 1024], at["a", 1024], found).interval
        law = power_of_n(found, "b")
        assert loss is not None
        assert apart is not None
        assert law is not None
        return [
            loss.low < 0.25 < loss.high,
            apart.low < np.log(1.25) < apart.high,
            law.b_interval.low < B_N < law.b_interval.high,
        ]

    rng = np.random.default_rng(11)
    shares = np.mean([inside(rng) for _ in range(150)], axis=0)
    assert (shares > 0.90).all()
    assert (shares < 0.995).all()


def test_what_seeds_share_cancels_in_differences() -> None:
    rng = np.random.default_rng(3)
    found, _ = readings(_planted(rng, 4, 0.001, 0.1), 32.0)
    at = {(one.place.arm, one.place.n_latents): one for one in found}
    apart = to_reference(at["b", 1024], at["a", 1024], found).interval
    loss = interval(at["b", 1024], found)
    assert apart is not None
    assert loss is not None
    assert apart.high - apart.low < 0.01
    assert np.log(loss.high / loss.low) > 0.05


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    plant(tmp_path, ("topk", "relu"), (512,), seeds=(0,))
    found = compare(load_runs(tmp_path, allow="autoencoder"), l0s=[32.0])
    (target,) = found.targets
    relu = next(at for at in target.found if at.place.arm == "relu")
    apart = target.difference(relu, "topk")
    assert target.interval(relu) is None
    assert apart is not None
    assert apart.interval is None
    assert any("one seed" in caution for caution in found.cautions())


def test_each_arm_at_its_best_rate(tmp_path: Path) -> None:
    plant(tmp_path, ("relu",), (512,), seeds=(0, 1), rates={1e-3: 1.05, 2e-3: 1.0, 4e-3: 1.1})
    found = compare(load_runs(tmp_path), l0s=[32.0])
    (at,) = found.targets[0].found
    assert at.place.tuned[0] == 2e-3
    assert at.tried == 3
    assert at.loss == pytest.approx(planted_loss("relu", 512, 32.0), rel=0.01)
    assert any("best of the learning rates" in caution for caution in found.cautions())


def test_the_command(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figures = tmp_path / "out.json", tmp_path / "figures"
    words = [str(sweep), "--l0", "12,32", "--json", str(out), "--figures", str(figures)]
    assert equal_l0_command(words) == 0
    text = capsys.readouterr().out
    assert "not measured: L0 17.7 to 104" in text
    assert sorted(path.name for path in figures.iterdir()) == ["frontiers.png", "loss_at_l0.png"]
    at = json.loads(out.read_text())["at"]
    assert [len(target["losses"]) for target in at] == [3, 9]
    assert [len(target["outside"]) for target in at] == [6, 0]
    relu = next(one for one in at[1]["losses"] if one["arm"] == "relu")
    assert relu["over_reference_ci95"][0] < 0.25 < relu["over_reference_ci95"][1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--l0", "500"], "outside the measured L0s of every arm"),
        (["--l0", "x"], "no list of numbers"),
        (["--l0", "-4"], "must be above 0"),
        (["--l0", "32", "--reference", "prolu"], "--reference prolu is none"),
        (["--l0", "32", "--tokens", "5M"], "--tokens 5M leaves no run; there are runs of 1M"),
        (["--l0", "32", "--by", "shape"], "--by shape is no column"),
        (["--by", "layer"], "the runs mix autoencoder"),
    ],
)
def test_what_is_refused(
    sweep: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    allow = ["--allow", "autoencoder"] if "shape" in words else []
    assert equal_l0_command([str(sweep), *words, *allow]) == 2
    assert reason in capsys.readouterr().err


def test_runs_that_differ_in_something_else_are_no_curve(sweep: Path) -> None:
    frame = load_runs(sweep, allow="autoencoder")
    with pytest.raises(TableError, match="differ in something else"):
        compare(frame, by=("layer",), l0s=[32.0])


def test_default_l0s_are_where_most_were_measured(sweep: Path) -> None:
    found = compare(load_runs(sweep, allow="autoencoder"))
    assert [target.l0 for target in found.targets] == [32.0, 64.0]
    json.dumps(comparison_json(found), allow_nan=False)


def test_figures_have_every_run_and_a_line_for_each_arm(found: Comparison) -> None:
    drawn = frontiers(found)
    assert [axes.get_title() for axes in drawn.axes] == ["n = 512", "n = 1024", "n = 2048"]
    points = [line for line in drawn.axes[0].lines if line.get_marker() in ("o", "s", "D")]
    curves = [line for line in drawn.axes[0].lines if len(line.get_xdata()) == 60]
    assert sum(len(line.get_xdata()) for line in points) == 3 * 3 * 4
    assert len(curves) == 3
    against_n = loss_at_l0(found)
    assert against_n is not None
    assert len(against_n.axes[0].containers) == 9


@pytest.mark.parametrize("tuned", [True, False])
def test_open_marks_are_named_where_an_arm_has_several_rates(tmp_path: Path, tuned: bool) -> None:
    """Arms of a rate each, as after tuning, have none."""
    plant(tmp_path, ("topk", "relu"), (512,), (0,), rates={1e-3: 1.1, 2e-3: 1.0})
    for path in tmp_path.glob("*/record.json"):
        result = json.loads(path.read_text())["result"]
        if not tuned and (result["lr"] == 1e-3) != (result["autoencoder"] == "topk"):
            path.unlink()
    runs = load_runs(tmp_path, allow="autoencoder")
    legend = frontiers(compare(runs, l0s=[32.0])).axes[-1].get_legend()
    assert legend is not None
    assert ("not the best lr" in [text.get_text() for text in legend.get_texts()]) == tuned


def test_a_page_of_architectures_tunes_rates_and_does_not_ask_of_them(tmp_path: Path) -> None:
    rates = {1e-3: 1.1, 2e-3: 1.0}
    plant(tmp_path, ("topk", "relu"), (512,), seeds=(0, 1), rates=rates)
    assert report([str(tmp_path)]) == 2  # unless allowed
    assert report([str(tmp_path), "--allow", "autoencoder"]) == 0
    found = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert found["ablations"] == []
    (at_l0,) = found["equal_l0"]
    assert (at_l0["by"], at_l0["reference"]) == (["autoencoder"], "topk")
    assert {loss["lr"] for target in at_l0["at"] for loss in target["losses"]} == {2e-3}
