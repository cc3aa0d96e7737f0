"""How far a trend hangs on what was drawn: against units drawn again, and left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from planted_quality import SIZES, SPARSITIES, plant_quality, values_at
from scipy import stats

from analysis.laws.forms import Array
from analysis.quality.command import quality_command
from analysis.quality.law import laws_tried
from analysis.quality.metrics import Quality
from analysis.quality.trend import Trend, trend
from analysis.records.load import load_runs
from scaling.evaluation.estimate import Estimate
from scaling.runs.draws import read_draws, write_draws

AUC = Quality("probe_auc", "probes", "AUC", "higher")
LOSS = Quality("probe_loss", "probes", "loss", "lower", relative=True)
TASKS = 12


def _of_tasks(folder: Path, quality: Quality, slopes: Array, noise: float = 0.0) -> Path:
    """Runs whose number is the mean over tasks, each of which has its own level and slope in
    log2 n; written as an evaluation writes them."""
    rng = np.random.default_rng(3)
    levels = rng.uniform(0.4, 0.8, len(slopes))
    measured_as = {"probes": "0a"}
    sweep = plant_quality(folder, {quality.column: lambda n, k: 1.0}, measured_as=measured_as)
    for row in load_runs(sweep).to_dict("records"):
        run, at = Path(str(row["folder"])), np.log2(float(row["n_latents"]) / SIZES[0])
        scatter = noise * rng.standard_normal()
        found = Estimate.mean(levels + slopes * at + scatter, "tasks")
        content = json.loads((run / "evaluation.json").read_text())
        (run / "evaluation.json").write_text(json.dumps({**content, quality.column: found.value}))
        assert found.draws_U is not None
        others = {"probe_other": rng.normal(size=len(slopes))}
        moves = {**others, quality.column: found.draws_U}
        write_draws(run, "probes", "0a", moves, units="tasks")
    return sweep


def _with_nothing(path: Path, n_units: int) -> None:
    """Units that say nothing of any run, beside the others."""
    run, found = path.parent.parent, read_draws(path.parent.parent, "probes", "0a")
    moves = {name: np.append(one, np.zeros(n_units)) for name, one in found.moves.items()}
    write_draws(run, "probes", "0a", moves, units=found.units)


def _trend(sweep: Path, quality: Quality) -> Trend:
    found = trend(values_at(sweep, quality), "n")
    assert found is not None
    return found


def test_of_means_over_tasks_it_is_the_mean_of_their_slopes(tmp_path: Path) -> None:
    slopes = np.random.default_rng(0).normal(0.01, 0.03, TASKS)
    found = _trend(_of_tasks(tmp_path / "s", AUC, slopes), AUC)
    expected = stats.t.interval(0.95, TASKS - 1, slopes.mean(), stats.sem(slopes))
    assert found.slope == pytest.approx(slopes.mean())
    assert found.draw == pytest.approx(expected, rel=1e-4)
    assert found.interval is not None
    assert found.interval.low > 0 > expected[0], "a line through all cells, but not of all tasks"
    assert not found.is_seen
    for path in (tmp_path / "s").glob("*/evaluation/draws_probes.npz"):
        _with_nothing(path, n_units=5)
    again = _trend(tmp_path / "s", AUC)
    assert again.draw == pytest.approx(expected, rel=1e-4), "units without a part are none"


def test_of_one_unit_nothing_is_known(tmp_path: Path) -> None:
    sweep = _of_tasks(tmp_path / "s", AUC, np.array([0.01]), noise=0.001)
    assert _trend(sweep, AUC).draw is None


def test_seeds_of_a_cell_share_its_weight(tmp_path: Path) -> None:
    """A cell of one seed counts as one of two: its means are what the line goes through."""
    slopes = np.random.default_rng(0).normal(0.01, 0.03, TASKS)
    sweep = _of_tasks(tmp_path / "s", AUC, slopes)
    rows = load_runs(sweep).to_dict("records")
    gone = next(row for row in rows if (row["n_latents"], row["seed"]) == (SIZES[-1], 1))
    shutil.rmtree(str(gone["folder"]))
    found = _trend(sweep, AUC)
    expected = stats.t.interval(0.95, TASKS - 1, slopes.mean(), stats.sem(slopes))
    assert found.draw == pytest.approx(expected, rel=1e-4)


def test_what_moves_all_runs_alike_is_no_part_of_it(tmp_path: Path) -> None:
    found = _trend(_of_tasks(tmp_path / "s", AUC, np.full(TASKS, 0.02), noise=0.001), AUC)
    assert found.draw is not None
    assert found.draw == pytest.approx((found.slope, found.slope), abs=1e-6)
    assert found.is_seen


def test_relative_changes_scatter_as_tasks_left_out(tmp_path: Path) -> None:
    """The jackknife, which fits again without each task."""
    slopes = np.random.default_rng(1).normal(-0.03, 0.02, TASKS)
    whole = _trend(_of_tasks(tmp_path / "whole", LOSS, slopes), LOSS)
    rng = np.random.default_rng(3)
    levels = rng.uniform(0.4, 0.8, TASKS)
    x = np.log2(np.array(SIZES) / SIZES[0])
    means = [
        np.log([(levels[kept] + slopes[kept] * at).mean() for at in x])
        for task in range(TASKS)
        for kept in [np.arange(TASKS) != task]
    ]
    without = np.array([stats.linregress(x, one).slope for one in means])
    error = np.sqrt((TASKS - 1) / TASKS * ((without - without.mean()) ** 2).sum())
    assert whole.draw is not None
    half = stats.t.ppf(0.975, TASKS - 1) * error
    assert whole.draw.high - whole.slope == pytest.approx(half, rel=0.1)


def test_no_law_is_claimed_of_what_other_tasks_might_not_show(tmp_path: Path) -> None:
    slopes = np.random.default_rng(0).normal(-0.01, 0.03, TASKS)
    sweep = _of_tasks(tmp_path / "s", LOSS, slopes, noise=0.0005)
    [tried] = laws_tried(values_at(sweep, LOSS))
    assert tried.objection == "no effect of n is seen beyond the tasks drawn"
    for path in sweep.glob("*/evaluation/draws_*"):
        path.unlink()
    assert laws_tried(values_at(sweep, LOSS))[0].objection != tried.objection


@pytest.mark.parametrize(
    "damage", ["one run's file", "one of other length", "otherwise measured", "of other units"]
)
def test_where_not_all_runs_say_it_nothing_is_known(tmp_path: Path, damage: str) -> None:
    sweep = _of_tasks(tmp_path / "s", AUC, np.linspace(-1, 1, TASKS) / 100)
    path = min(sweep.glob("*/evaluation/draws_probes.npz"))
    run = path.parent.parent
    if damage == "one run's file":
        path.write_bytes(b"")
    else:
        n_units = TASKS - 1 if damage == "one of other length" else TASKS
        how = "0b" if damage == "otherwise measured" else "0a"
        units = "other tasks" if damage == "of other units" else "tasks"
        write_draws(run, "probes", how, {"probe_auc": np.zeros(n_units)}, units=units)
    found = _trend(sweep, AUC)
    assert found.draw is None
    assert found.interval is not None


def test_the_command_says_both_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = _of_tasks(tmp_path / "s", AUC, np.full(TASKS, 0.01), noise=0.001)
    out = tmp_path / "quality.json"
    assert quality_command([str(sweep), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "95% of the draw" in printed
    assert " (tasks)" in printed
    along = json.loads(out.read_text())["metrics"]["probe_auc"]["trends"]
    low, high = along["n"]["ci95_of_draw"]
    assert low == pytest.approx(high, abs=1e-6)
    assert len(SPARSITIES) > 1
    assert along["k"]["ci95_of_draw"] is not None


def test_where_the_line_itself_shows_nothing_no_draw_is_blamed(tmp_path: Path) -> None:
    sweep = _of_tasks(tmp_path / "s", LOSS, np.zeros(TASKS), noise=0.01)
    [tried] = laws_tried(values_at(sweep, LOSS))
    assert tried.objection == "no effect of n is seen beyond what a straight line misses"
