from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fabricate import Cell, record, write_record

from analysis.counts import short_count
from analysis.records.load import load_runs
from analysis.study.facts import trained_tokens
from analysis.study.run_cautions import CHECKS, run_cautions

CELLS = [Cell(256, 4, 250_000), Cell(512, 4, 250_000), Cell(1024, 4, 250_000)]


def _cautions(folder: Path, *changes: dict[str, Any]) -> dict[str, str]:
    for i, cell in enumerate(CELLS):
        change = changes[i] if i < len(changes) else {}
        write_record(folder, record(cell, 0.4 - i / 100, **{"epochs": 0.9, **change}))
    return run_cautions(load_runs(folder))


def test_runs_without_a_flaw_have_no_caution(tmp_path: Path) -> None:
    assert _cautions(tmp_path, {"seed": 1}) == {}


def test_one_seed(tmp_path: Path) -> None:
    found = _cautions(tmp_path)
    assert list(found) == ["one_seed"]
    assert "all 3 runs share one seed (0)" in found["one_seed"]


def test_repeated_tokens(tmp_path: Path) -> None:
    found = _cautions(tmp_path, {"epochs": 1.5}, {"epochs": 4.0}, {"epochs": None})
    assert "2 of 3 runs" in found["repeated_tokens"]
    assert "1.5 to 4 epochs" in found["repeated_tokens"]


def test_train_heldout_gap(tmp_path: Path) -> None:
    """Losses are 0.40, 0.39 and 0.38: gaps of 1, 2 and 10%."""
    gaps = [{"train_normalized_mse": 0.4 / 1.01}, {"train_normalized_mse": 0.39 / 1.02}]
    found = _cautions(tmp_path, *gaps, {"train_normalized_mse": 0.38 / 1.1})
    assert "2.0% in the median and 10.0% at worst" in found["train_heldout_gap"]
    assert "1.0% at the smallest n, 10.0% at the largest" in found["train_heldout_gap"]


def test_runs_that_cost_more_than_budgets_count(tmp_path: Path) -> None:
    flops = record(CELLS[0], 0.4)["result"]["flops_dense"]
    found = _cautions(tmp_path, {"seed": 1, "flops_dense": 1.5 * flops})
    assert list(found) == ["other_flops"]
    assert "1 of 3 runs took up to 1.5 times the FLOPs" in found["other_flops"]


def test_batches_of_several_sizes_are_no_reason_to_refuse(tmp_path: Path) -> None:
    found = _cautions(tmp_path, {"batch_tokens": 512})
    assert "256 (2 runs), 512 (1 runs)" in found["mixed_batch_tokens"]


def test_many_dead_latents_name_the_worst_run(tmp_path: Path) -> None:
    found = _cautions(tmp_path, {"seed": 1, "dead_fraction": 0.25})
    assert found == {}
    found = _cautions(tmp_path, *({"seed": i, "dead_fraction": 0.2 + 0.1 * i} for i in range(3)))
    assert list(found) == ["dying_latents"]
    assert "2 of 3 runs have more than 25% dead latents" in found["dying_latents"]
    assert "(worst 40%: n = 1024, k = 4, 249,856 tokens)" in found["dying_latents"]


def test_every_caution_is_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "laws.md").read_text()
    assert [code for code in CHECKS if f"| `{code}` |" not in page] == []


def test_tokens_trained_beside_the_budget_asked_for(tmp_path: Path) -> None:
    _cautions(tmp_path, {"tokens": 249_344})
    assert trained_tokens(load_runs(tmp_path), 250_000.0) == [249_344, 249_856]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (500_000, "500k"),
        (499_968, "500k"),
        (999_936, "1M"),
        (1_000_000, "1M"),
        (124_928, "125k"),
        (1_234_567, "1.235M"),
        (262_144, "262k"),
        (999_999_999, "1B"),
        (999.5, "999.5"),
        (64, "64"),
    ],
)
def test_short_count(value: float, text: str) -> None:
    assert short_count(value) == text
