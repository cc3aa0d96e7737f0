"""Every file in sweeps/ composes, says how many runs it has, and dry-runs without harvesting."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaling.activations.build import Description
from scaling.config import RunConfig
from scaling.plan import RunPlan
from scaling.sweep import launch as launching
from tests.compose import ROOT, composed_points
from tests.sweep_points import sweep_points

FILES = [path.relative_to(ROOT / "sweeps") for path in ROOT.glob("sweeps/**/*.yaml")]
SWEEPS = sorted(str(path.with_suffix("")) for path in FILES)
ABLATIONS = [name for name in SWEEPS if name.startswith("ablations/")]
QUESTIONS = ["nk_grid", "isoflop", "to_convergence", "token_grid", "lr", "batch", "subject_size"]
QUESTIONS += ABLATIONS
PAGE = ROOT / "docs" / "sweeps.md"
D_MODEL = 576


@pytest.fixture
def dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[RunPlan]]:
    """Dry runs over data that nobody has yet; the plans of each are kept, their times are not
    taken."""
    seen: list[list[RunPlan]] = []

    def describe(config: object, data_dir: Path) -> Description:
        del data_dir
        tokens = getattr(config, "max_tokens", None)
        return Description(D_MODEL, tokens, 1_000, ready=False, spec=None)

    def keep(plans: list[RunPlan]) -> list[RunPlan]:
        seen.append(plans)
        return [plan.with_estimate(1.0) for plan in plans]

    def prepare(*_: object, **__: object) -> None:
        raise AssertionError("a dry run must not harvest")

    monkeypatch.setattr(launching, "describe", describe)
    monkeypatch.setattr(launching, "with_estimates", keep)
    monkeypatch.setattr(launching, "_prepare_all", prepare)
    monkeypatch.chdir(tmp_path)
    return seen


def dry_run(points: list[RunConfig]) -> str:
    said = StringIO()
    points = [replace(point, dry_run=True) for point in points]
    assert launching.launch(points, Console(file=said, width=200)) == 0
    return said.getvalue()


def runs_of(name: str) -> int:
    """As its header says."""
    said = re.search(r"# Runs: +(\d+)", header(name))
    assert said is not None
    return int(said[1])


def header(name: str) -> str:
    lines = (ROOT / "sweeps" / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_has_the_runs_that_its_header_says(
    name: str, dry: list[list[RunPlan]], tmp_path: Path
) -> None:
    points = sweep_points(name)
    assert {point.sweep_name for point in points} == {name.replace("/", "_")}
    said = dry_run(points)
    assert len(dry[0]) == runs_of(name)
    assert f"{runs_of(name)} runs, " in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", SWEEPS)
def test_a_header_says_question_runs_and_what_it_feeds(name: str) -> None:
    assert all(word in header(name) for word in ("Question:", "Runs:", "Feeds:"))


@pytest.mark.parametrize("name", SWEEPS)
def test_the_page_on_sweeps_lists_it_with_its_runs(name: str) -> None:
    listed = re.search(rf"^\| `{name}` \|[^|]+\| (\d+)", PAGE.read_text(), re.MULTILINE)
    assert listed is not None
    assert int(listed[1]) == runs_of(name)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_header_says_three_scales_and_what_they_cost(name: str) -> None:
    scales = header(name).split("Scales:")[1]
    assert all(word in scales for word in ("two cores", "one GPU", "many nodes"))
    assert re.search(r"two cores .*?\d+ (minutes|core-seconds)", scales, re.DOTALL)
    assert "estimated" in header(name) or "planned" in header(name)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_varies_one_key_beside_sizes_and_seeds(name: str) -> None:
    """So that the report can tell which; architectures differ in what each alone has, too."""
    points = [_flat(asdict(point)) for point in sweep_points(name)]
    sizes = ("n_latents", "k", "penalty", "seed")
    varied = {
        key
        for key in points[0]
        if key.rpartition(".")[2] not in sizes and len({str(p.get(key)) for p in points}) > 1
    }
    several = len({type(point.autoencoder) for point in sweep_points(name)}) > 1
    assert several or len(varied) == 1


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def test_equal_flops_are_equal_to_a_batch(dry: list[list[RunPlan]]) -> None:
    dry_run(sweep_points("isoflop"))
    by_budget: dict[float, list[RunPlan]] = {}
    for plan in dry[0]:
        by_budget.setdefault(plan.config["train"]["flops"], []).append(plan)
    assert len(by_budget) == 3
    for flops, plans in by_budget.items():
        assert len(plans) >= 4  # enough for a minimum with two sides
        for plan in plans:
            spent = 12 * plan.autoencoder.n_latents * D_MODEL * plan.tokens
            assert 0.99 * flops < spent <= flops


def test_ladders_are_shares_of_d_star(dry: list[list[RunPlan]]) -> None:
    dry_run(sweep_points("token_grid"))
    ladders: dict[tuple[int, int], list[int]] = {}
    for plan in dry[0]:
        cell = (plan.autoencoder.n_latents, plan.autoencoder.k)
        ladders.setdefault(cell, []).append(plan.tokens)
    for (n, _), tokens in ladders.items():
        full = 2_000_000 * (n / 1024) ** 0.6
        assert sorted(tokens) == pytest.approx([full / 8, full / 4, full / 2, full], rel=2e-3)


def test_runs_to_convergence_have_one_rule_and_a_constant_rate(dry: list[list[RunPlan]]) -> None:
    dry_run(sweep_points("to_convergence"))
    assert {(p.train.stop_fall, p.train.decay_fraction) for p in dry[0]} == {(0.01, 0.0)}
    longer = sweep_points("to_convergence", "train.tokens=4_400_000")
    dry_run(longer)
    assert [p.train.lr for p in dry[0]] == [p.train.lr for p in dry[1]]


def test_a_sweep_of_points_in_another_folder_is_launched_by_name(
    dry: list[list[RunPlan]], tmp_path: Path
) -> None:
    """What a planner writes: DIR/sweeps/NAME.yaml, with `-cd DIR` on the command line."""
    text = (
        "# @package _global_\nsweep_name: next\nsweep:\n  points:\n"
        "  - {n_latents: 512, k: 16, tokens: 500_000}\n"
        "  - {n_latents: 8192, k: 16, tokens: 2_000_000, seed: 1}\n"
    )
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "next.yaml").write_text(text)
    points = composed_points(f"hydra.searchpath=[file://{tmp_path}]", "sweeps=next")
    dry_run(points)
    found = [(p.autoencoder.n_latents, p.tokens_requested, p.train.seed) for p in dry[0]]
    assert found == [(512, 500_000, 0), (8192, 2_000_000, 1)]
