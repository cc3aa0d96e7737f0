"""Sweeps over one key: found in the plans, compared level by level, reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from planted_ablations import ablate
from planted_frontiers import ask_for_l0, plant

from analysis.ablation.found import Ablation, ablations_of
from analysis.records.exclusions import with_dead
from analysis.records.load import load_runs
from analysis.report.plots.ablation import ablation
from analysis.report.write import main

ON, OFF = ({}, 1.0), ({"b_enc": False}, 1.03)


def _found(folder: Path) -> list[Ablation]:
    return ablations_of(load_runs(folder))


def test_the_key_and_its_effect_are_found(tmp_path: Path) -> None:
    (found,) = _found(ablate(tmp_path, [ON, OFF]))
    assert (found.key, found.levels, found.usual) == ("autoencoder.b_enc", ("on", "off"), "on")
    assert [*found.cells] == ["n = 512", "n = 1024"]
    for cell in found.cells:
        assert found.difference(cell, "on") is None
        apart = found.difference(cell, "off")
        assert apart is not None
        over = apart.share_interval
        assert over is not None
        assert over.low < 0.03 < over.high
        # What the two runs of a seed share is ten times as large, and cancels.
        assert over.high - over.low < 0.008
        assert not found.outcome


def test_a_sweep_over_sizes_alone_has_no_such_key(tmp_path: Path) -> None:
    assert _found(ablate(tmp_path, [ON])) == []


def test_a_level_is_taken_at_its_best_rate(tmp_path: Path) -> None:
    levels = [
        ({"b_enc": b, "lr_scale": rate}, factor * (1 + cost))
        for b, factor, best in ((True, 1.0, 1.0), (False, 1.03, 2.0))
        for rate in (1.0, 2.0)
        for cost in (0.0 if rate == best else 0.2,)
    ]
    found = {one.key: one for one in _found(ablate(tmp_path, levels))}
    assert [*found] == ["autoencoder.b_enc", "train.lr_scale"]
    by_bias = found["autoencoder.b_enc"]
    assert [*by_bias.cells] == ["n = 512", "n = 1024"]
    off = by_bias.cells["n = 512"]["off"]
    assert off.tuned == "lr_scale = 2 (best of 2)"
    apart = by_bias.difference("n = 512", "off")
    assert apart is not None
    assert apart.share == pytest.approx(0.03, abs=0.005)
    by_rate = found["train.lr_scale"]
    assert {"n = 512, b_enc = on", "n = 1024, b_enc = off"} < {*by_rate.cells}


def test_one_key_at_a_time_from_a_baseline(tmp_path: Path) -> None:
    levels = [ON, OFF, ({"adam_eps": 1e-8}, 1.1), ({"adam_eps": 1e-6}, 1.2)]
    found = {one.key: one for one in _found(ablate(tmp_path, levels))}
    assert {key: (one.levels, one.usual) for key, one in found.items()} == {
        "autoencoder.b_enc": (("on", "off"), "on"),
        "train.adam_eps": (("6.25e-10", "1e-08", "1e-06"), "6.25e-10"),
    }
    assert all(len(one.cells) == 2 for one in found.values())
    apart = found["train.adam_eps"].difference("n = 512", "1e-06")
    assert apart is not None
    assert apart.share == pytest.approx(0.2, abs=0.01)


def test_keys_that_change_as_one_are_one_question(tmp_path: Path) -> None:
    (found,) = _found(ablate(tmp_path, [ON, ({"b_enc": False, "adam_eps": 1e-8}, 1.1)]))
    assert found.key == "autoencoder.b_enc and train.adam_eps"


def test_few_runs_of_a_key_are_not_the_question(tmp_path: Path) -> None:
    ablate(tmp_path, [ON], sizes=(256, 512, 1024, 2048))
    ablate(tmp_path, [ON, OFF], sizes=(512,), seeds=(7,), first=100)
    frame = load_runs(tmp_path)
    assert (frame["excluded"] == "").sum() == 14
    assert ablations_of(frame) == []
    (found,) = ablations_of(frame.loc[frame["n_latents"] == 512])
    assert found.key == "autoencoder.b_enc"


def test_without_plans_the_records_tell(tmp_path: Path) -> None:
    levels = [ON, ({"dead_treatment": "none"}, 1.05)]
    results = {1.0: {"dead_treatment": "auxk"}, 1.05: {"dead_treatment": "none"}}
    ablate(tmp_path, levels, results=results)
    for plan in tmp_path.glob("*/plan.json"):
        plan.unlink()
    (found,) = ablations_of(load_runs(tmp_path, allow="dead_treatment"))
    assert (found.key, found.usual) == ("autoencoder.dead_treatment", "auxk")


def test_runs_equal_in_raw_loss_are_no_copies_where_averaged_weights_differ(
    tmp_path: Path,
) -> None:
    levels = [({"ema_decay": 0.999}, 1.0), ({"ema_decay": 0.99}, 1.0 + 1e-12)]
    results = {factor: {"normalized_mse": 0.25} for _, factor in levels}
    results[levels[1][1]] = {"normalized_mse": 0.25, "normalized_mse_ema": 0.2}
    ablate(tmp_path, levels, seeds=(0,), results=results)
    (found,) = _found(tmp_path)
    assert found.key == "train.ema_decay"
    assert len(found.level_of) == 4


def test_a_treatment_without_effect_is_a_level_and_no_copy(tmp_path: Path) -> None:
    """Where no latent dies, every treatment leaves the same bits: a difference of nothing."""
    levels = [ON, ({"dead_treatment": "none"}, 1.0 + 1e-12)]
    same = {"normalized_mse": 0.25, "normalized_mse_ema": 0.26}
    named = zip(levels, ("auxk", "none"), strict=True)
    results = {factor: {**same, "dead_treatment": name} for (_, factor), name in named}
    ablate(tmp_path, levels, seeds=(0,), results=results)
    (found,) = ablations_of(load_runs(tmp_path, allow="dead_treatment"))
    assert found.key == "autoencoder.dead_treatment"
    assert len(found.level_of) == 4


@pytest.fixture(scope="module")
def treatments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a treatment most latents die: here that is the result, and no reason to leave out."""
    levels = [ON, ({"dead_treatment": "none"}, 1.05), ({"dead_treatment": "resample"}, 1.02)]
    results = {
        1.0: {"dead_treatment": "auxk"},
        1.05: {"dead_treatment": "none", "dead_fraction": 0.7, "silent_fraction_eval": 0.7},
        1.02: {"dead_treatment": "resample"},
    }
    return ablate(tmp_path_factory.mktemp("runs") / "dead", levels, results=results)


def test_a_report_of_levels(treatments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = treatments / "report"
    report.mkdir()
    (report / "fits.json").write_text("{}")  # of an earlier report
    assert main([str(treatments)]) == 0
    assert "by autoencoder.dead_treatment" in capsys.readouterr().out
    names = sorted(path.name for path in report.iterdir())
    figure = "ablation_autoencoder_dead_treatment.png"
    assert names == [figure, "comparison.json", "index.html"]
    (found,) = json.loads((report / "comparison.json").read_text())["ablations"]
    dead = {one["level"]: one["dead_fraction"] for one in found["cells"]}
    assert dead == pytest.approx({"auxk": 0.01, "none": 0.7, "resample": 0.01})
    page = (report / "index.html").read_text()
    assert page.count("<svg") == 1
    assert "What autoencoder.dead_treatment does" in page


def test_another_mixture_is_refused_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ablate(tmp_path, [ON, OFF])
    for place, path in enumerate(sorted(tmp_path.glob("*/record.json"))):
        row = json.loads(path.read_text())
        row["result"]["decay_fraction"] = 0.1 * (place % 3)
        path.write_text(json.dumps(row))
    assert main([str(tmp_path)]) == 2
    assert "the runs mix decay_fraction" in capsys.readouterr().err


def test_the_figure_has_a_line_for_each_cell(treatments: Path) -> None:
    (found,) = ablations_of(with_dead(load_runs(treatments, allow=("rejected", "dead_treatment"))))
    drawn = ablation(found)
    losses, apart, dead = drawn.axes
    assert [label.get_text() for label in losses.get_xticklabels()] == ["auxk", "none", "resample"]
    seeds = [line for line in losses.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_ydata()) for line in seeds) == 2 * 3 * 3
    assert len(apart.containers) == 2 * 2
    assert np.max([line.get_ydata() for line in dead.lines]) == pytest.approx(0.7)


def _treat_again(folder: Path) -> None:
    """A second run of each, with another treatment, which lowers the loss by a tenth."""
    for path in sorted(folder.glob("*/record.json")):
        row = json.loads(path.read_text())
        treated = {**row["result"], "dead_treatment": "ghost_grads"}
        treated["normalized_mse"] *= 0.9
        again = {**row, "run_id": f"f{row['run_id'][1:]}", "result": treated}
        (folder / again["run_id"]).mkdir()
        (folder / again["run_id"] / "record.json").write_text(json.dumps(again))


def test_runs_asked_for_another_l0_are_another_cell(tmp_path: Path) -> None:
    plant(tmp_path, ("relu",), (512,), seeds=(0,))
    ask_for_l0(tmp_path)
    _treat_again(tmp_path)
    (found,) = ablations_of(load_runs(tmp_path, allow="dead_treatment"))
    assert [len(at.runs) for levels in found.cells.values() for at in levels.values()] == [1] * 8
    assert "target L0 = 35" in list(found.cells)[1]


def test_levels_of_runs_without_k_are_compared_at_equal_l0(tmp_path: Path) -> None:
    plant(tmp_path, ("relu",), (512,), seeds=(0, 1))
    _treat_again(tmp_path)
    assert main([str(tmp_path)]) == 0
    found = json.loads((tmp_path / "report" / "comparison.json").read_text())
    (one,) = found["ablations"]
    assert one["sparsity_is_an_outcome"] is True
    (at_l0,) = found["equal_l0"]
    assert at_l0["by"] == ["autoencoder.dead_treatment"]
    assert at_l0["reference"] == one["usual"] == "ghost_grads"
    over = {loss["arm"]: loss["over_reference"] for loss in at_l0["at"][0]["losses"]}
    assert over == {"ghost_grads": None, "none": pytest.approx(1 / 0.9 - 1)}
    assert (tmp_path / "report" / "frontiers.png").exists()
