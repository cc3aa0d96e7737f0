"""The command line with a mesh: the result fields are those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaling.activations.planted import planted_spec
from scaling.runs.record import Record, problems_of
from scaling.sweep.planner import make_plan
from tests.compose import TINY, tiny
from tests.integration.test_launch import launch

EVERYTHING = [
    "autoencoder.n_latents=512",
    "autoencoder.k=4",
    "autoencoder.dead_after_tokens=512",
    "train.clip_norm=0.5",
]
"""Clipping at work, latents dead and revived."""


def record_of(cwd: Path, name: str, *overrides: str) -> dict[str, Any]:
    ran = launch(cwd, *TINY, *EVERYTHING, f"sweep_name={name}", *overrides)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (path,) = cwd.glob(f"runs/{name}/*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "done"
    assert problems_of(Record.from_json(record)) == []
    return record


def assert_same_result(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["run_id"] == expected["run_id"]
    assert found["result"].keys() == expected["result"].keys()
    for name, value in expected["result"].items():
        close = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        assert found["result"][name] == close, name


def test_a_mesh_of_four_gives_the_record_of_one_process(tmp_path: Path) -> None:
    alone = record_of(tmp_path, "alone")
    assert 0 < alone["result"]["dead_fraction"] < 1
    mesh = record_of(tmp_path, "mesh", "mesh.dp=2", "mesh.latent=2")
    assert (mesh["cost"]["engine"], mesh["cost"]["mesh"]) == ("deepspeed", [2, 2])
    assert_same_result(mesh, alone)


def test_only_an_approximation_makes_the_mesh_part_of_a_run() -> None:
    source = planted_spec(tiny().activations)  # type: ignore[arg-type]

    def run_id(*overrides: str) -> str:
        return make_plan(tiny(*overrides), source).run_id

    exact = run_id()
    assert run_id("mesh.latent=4") == run_id("mesh.dp=2") == exact
    assert run_id("mesh.latent=1", "mesh.capacity_factor=1") == exact
    assert run_id("mesh.latent=4", "mesh.capacity_factor=4") == exact  # each may offer all k
    halves = run_id("mesh.latent=2", "mesh.capacity_factor=1")
    quarters = run_id("mesh.latent=4", "mesh.capacity_factor=1")
    assert len({exact, halves, quarters}) == 3


def test_an_approximation_is_another_run_and_tells_what_it_loses(tmp_path: Path) -> None:
    exact = record_of(tmp_path, "exact", "mesh.latent=2", "logger.every_tokens=2560")
    assert exact["cost"]["engine"] == "fused"
    capped = record_of(
        tmp_path, "capped", "mesh.latent=2", "mesh.capacity_factor=1", "logger.every_tokens=2560"
    )
    assert capped["run_id"] != exact["run_id"]
    rows = (tmp_path / "runs/capped" / capped["run_id"] / "metrics.jsonl").read_text()
    lost = [json.loads(row)["select/lost_fraction"] for row in rows.splitlines()]
    assert all(0 < share < 0.5 for share in lost)
