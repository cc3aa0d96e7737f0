"""What the planning commands say beside their tables: cautions, epochs, recipe, candidates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fabricate import PLANTED, Cell, demo_cells, fabricate_sweep, record, write_record
from planted_fit import planted_fit, stored_as

from analysis.command import write_json
from analysis.design import design_command
from analysis.frontier import frontier_command
from analysis.planning.compute import Convention
from analysis.planning.context import read_context
from analysis.planning.design import candidate_grid
from analysis.planning.design_notes import RECIPE, candidate_note, recipe_notes
from analysis.planning.frontier import Frontier, frontier
from analysis.planning.frontier_table import PAPER, frontier_json, frontier_text
from analysis.planning.text import of_axis
from analysis.predict import predict_command
from analysis.records.load import load_runs
from analysis.study.fitted import to_json
from analysis.study.run_cautions import run_cautions
from tests.compose import composed

DESIGN = [
    *("--target", "n=16384,k=32,tokens=4M", "--n", "256,512,8192", "--k", "8,32"),
    *("--tokens", "250k,1M"),
]
RECIPE_OF_RUNS = {"dead_after_tokens": [5000], "k_aux": [256], "decay_fraction": [0.2]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed, up to 3.8 epochs, and one run whose held-out loss is 5% above its training loss."""
    folder = fabricate_sweep(tmp_path_factory.mktemp("runs"), demo_cells())
    odd = record(Cell(4096, 8, 250_000), 0.3, train_normalized_mse=0.285)
    write_record(folder, odd)
    return folder


@pytest.fixture(scope="module")
def fits(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fits") / "fits.json"
    content: dict[str, Any] = {
        "fits": [to_json(planted_fit())],
        "cautions": run_cautions(load_runs(runs)),
        "provenance": {"d_model": [576], "recipe": RECIPE_OF_RUNS, "data_tokens": [262144]},
    }
    write_json(path, content)
    return path


def _printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_each_command_repeats_the_cautions_after_its_table(
    fits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        predict_command: ["n=4096", "k=16", "tokens=125k,524288"],
        frontier_command: ["--flops", "1e13", "--k", "16"],
        design_command: [*DESIGN, "--budget-flops", "1e14"],
    }
    for command, asked in words.items():
        assert command([str(fits), *asked]) == 0
        lines = _printed(capsys)
        codes = [line.split(":")[0] for line in lines if line.startswith("caution ")]
        assert codes == [
            "caution one_seed",
            "caution repeated_tokens",
            "caution train_heldout_gap",
        ]
        assert all(len(line) <= 100 for line in lines if line.startswith("caution "))
        assert lines.index(f"{codes[0]}: all runs share one seed, whose error no interval holds.")
        assert any(line.startswith("data: the runs fitted drew from 262k tokens") for line in lines)


def test_epochs_are_said_of_budgets_beyond_the_data(
    fits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = read_context(fits)
    assert [line for line in context.lines([1e5, 262144.0]) if line.startswith("data")] == []
    assert list(context.lines([1e5, 524288.0]))[-1].endswith("524k tokens of them are 2 epochs.")
    alone = tmp_path / "fit.json"
    write_json(alone, to_json(planted_fit()))
    assert list(read_context(alone).lines([1e12])) == []
    odd = tmp_path / "odd.json"
    odd.write_text(
        json.dumps({"cautions": {"mixed_batch_tokens": "the runs mix."}, "provenance": 3})
    )
    assert list(read_context(odd).lines([])) == ["caution mixed_batch_tokens: the runs mix."]


def test_sizes_tokens_and_flops_read_each_in_its_way(
    fits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = [of_axis(a, v) for a, v in (("n", 125e3), ("tokens", 125e3), ("flops", 2.212e11))]
    assert shown == ["125000", "125k", "2.21e+11"]
    assert predict_command([str(fits), "n=4096", "k=16", "tokens=125000"]) == 0
    lines = _printed(capsys)
    assert lines[1] == "  fitted ranges: n 256 to 4096, k 4 to 64, tokens 125k to 1M"
    row = next(line.split() for line in lines if line.split()[:2] == ["4096", "16"])
    assert row[2] == "125k"


def _frontier(convention: str) -> Frontier:
    return frontier(stored_as(PLANTED), [3e12, 1e13], [16.0], Convention(convention, 576))


def test_the_papers_exponents_stand_beside_dense_ones_only() -> None:
    """Where FLOPs are as n D the exponents add up to 1, and only there."""
    dense, sparse = _frontier("dense"), _frontier("sparse")
    for line in dense.exponents:
        assert line.of_n.value + line.of_tokens.value == pytest.approx(1.0, abs=1e-9)
    for line in sparse.exponents:
        assert line.of_n.value + line.of_tokens.value > 1.005
    assert frontier_json(dense)["paper"] == PAPER
    assert frontier_text(dense).count(PAPER) == 1
    assert PAPER not in frontier_text(sparse)
    assert "add up to more than 1" in frontier_text(sparse)
    assert "--convention dense" in frontier_json(sparse)["paper"]


def test_the_commands_count_sparse_flops_unless_asked(
    fits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, asked in (
        (frontier_command, ["--flops", "1e13", "--k", "16"]),
        (design_command, [*DESIGN, "--budget-flops", "1e14"]),
    ):
        assert command([str(fits), *asked]) == 0
        assert "sparse" in capsys.readouterr().out
        assert command([str(fits), *asked, "--convention", "dense"]) == 0
        assert "sparse" not in capsys.readouterr().out


def test_candidates_left_out_and_trained_are_counted(runs: Path) -> None:
    levels = [256.0, 512.0, 8192.0], [8.0, 32.0], [250e3, 1e6]
    left = candidate_grid(*levels)
    there = load_runs(runs)
    note = candidate_note(levels, 1 / 16, left, None)
    assert note == ("candidates: 10 of 12; 2 have k above n / 16 (--most-k-share) and are left out")
    # n = 256, k = 8 and n = 512, k = 8 and 32 have runs of 250k; none of 1M, none at n = 8192.
    assert candidate_note(levels, 1 / 16, left, there).endswith(
        "; 3 of the 10 have been trained already"
    )
    failed = there.assign(excluded="unfinished")
    assert "; 0 of the 10 have" in candidate_note(levels, 1 / 16, left, failed)


def test_a_sweep_without_like_says_that_it_stands_alone(
    fits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweeps").mkdir()
    words = [str(fits), *DESIGN, "--budget-flops", "1e14"]
    words += ["--sweep", str(tmp_path / "sweeps" / "next.yaml")]
    assert design_command(words) == 0
    alone, recipe = _printed(capsys)[-2:]
    assert "without --like the sweep stands alone" in alone
    assert recipe == (
        "warning: the runs fitted were trained with another recipe: dead_after_tokens 5000 "
        "(conf/: 10_000_000)."
    )
    assert design_command([*words, "--like", "demo"]) == 0
    printed = capsys.readouterr().out
    assert "stands alone" not in printed
    assert "another recipe" not in printed


def test_recipes_that_agree_are_no_warning() -> None:
    same = {"dead_after_tokens": [10_000_000], "k_aux": [256], "batch_tokens": [256]}
    assert len(list(recipe_notes(same, 576))) == 1
    (_, other) = recipe_notes({**same, "batch_tokens": [256, 512]}, 576)
    assert "batch_tokens 256, 512 (conf/: 256)" in other
    (_, narrow) = recipe_notes(same, 64)
    assert "k_aux 256 (conf/: 32)" in narrow
    assert len(list(recipe_notes({"k_aux": [3]}, None))) == 1  # not known: nothing to compare
    (_, untreated) = recipe_notes({**same, "dead_treatment": ["none"]}, 576)
    assert "dead_treatment none (conf/: auxk)" in untreated
    older = {**same, "dead_treatment": []}  # of records that say nothing of it
    assert len(list(recipe_notes(older, 576))) == 1


def test_the_recipe_is_that_of_conf() -> None:
    run = composed("autoencoder.n_latents=1024", "autoencoder.k=16", "train.tokens=1000")
    assert {
        "dead_treatment": run.autoencoder.dead_treatment,
        "dead_after_tokens": run.autoencoder.dead_after_tokens,  # type: ignore[attr-defined]
        "k_aux": run.autoencoder.k_aux,  # type: ignore[attr-defined]
        "decay_fraction": run.train.decay_fraction,
        "batch_tokens": run.train.batch_tokens,
    } == RECIPE
