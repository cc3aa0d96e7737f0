"""What a launch refuses before anything is spent, by the numbers of the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from scaling import budget, memory
from scaling.activations.build import prepare
from scaling.budget import GIB
from scaling.errors import UserError
from scaling.sweep import footprint
from scaling.sweep.footprint import check_memory, cost_shape, memory_bytes, plan_shape
from scaling.sweep.planner import make_plan
from scaling.sweep.preview import print_preview
from tests.compose import tiny

MESH = ["mesh.dp=2", "mesh.latent=2", "device=cpu"]
SLURM = [*MESH, "launcher=slurm"]


def test_a_machine_holds_all_ranks_of_a_run() -> None:
    alone, meshed = tiny("device=cpu"), tiny(*MESH)
    shape = cost_shape(meshed, 16)
    assert (shape.dp, shape.latent, shape.engine, shape.zero_stage) == (2, 2, "deepspeed", 1)
    assert memory_bytes(meshed, 16) == 4 * budget.rank_bytes(shape)
    assert memory_bytes(alone, 16) == budget.rank_bytes(cost_shape(alone, 16))


def test_the_refusal_names_mesh_size_and_remedy() -> None:
    config = tiny("autoencoder.n_latents=1048576", *MESH)
    with pytest.raises(UserError, match=r"mesh\.dp=2 mesh\.latent=2") as error:
        check_memory(config, 1024, available_bytes=24 * GIB)
    assert "for 4 processes on one machine" in str(error.value)
    fits = int(str(error.value).split("n_latents to ")[1].split(" ")[0])
    assert fits % 2 == 0  # it can be sharded
    check_memory(tiny(f"autoencoder.n_latents={fits}", *MESH), 1024, available_bytes=24 * GIB)
    with pytest.raises(UserError):
        check_memory(tiny(f"autoencoder.n_latents={fits + 2}", *MESH), 1024, 24 * GIB)


def test_shards_share_the_weights_replicas_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget.memory, "PROCESS_BYTES", 0)
    big = ["autoencoder.n_latents=65536", "device=cpu", "engine=torch"]

    def total(*mesh: str) -> int:
        return memory_bytes(tiny(*big, *mesh), 512)

    assert total("mesh.latent=4") < 2 * total()
    assert total("mesh.dp=4") > 3 * total()


def test_slurm_is_asked_for_what_a_node_gets() -> None:
    big = "autoencoder.n_latents=1048576"
    check_memory(tiny(big, *SLURM), 4096)  # this machine is not where it runs
    with pytest.raises(UserError, match=r"8\.0 GiB may be used"):
        check_memory(tiny(big, *SLURM, "launcher.mem_gb=8"), 4096)
    two_a_node = tiny(big, *SLURM, "launcher.ranks_per_node=2")
    assert memory_bytes(two_a_node, 4096) == memory_bytes(tiny(big, *SLURM), 4096) // 2


def test_a_gpu_is_asked_for_what_a_rank_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "gpu_bytes", lambda: 80 * GIB)
    monkeypatch.setattr(memory, "limit_bytes", lambda: 2**50)
    small = ["numerics.precision=bf16", "train.batch_tokens=1024"]
    check_memory(tiny("autoencoder.n_latents=1048576", *small), 768)
    with pytest.raises(UserError, match=r"on a GPU, and 80\.0 GiB may be used"):
        check_memory(tiny("autoencoder.n_latents=4194304", *small), 4096)
    check_memory(tiny("autoencoder.n_latents=4194304", *small, "mesh.latent=16"), 4096)


@pytest.mark.parametrize("words", [[], MESH, ["engine=torch", "device=cpu"]], ids=str)
def test_the_plan_costs_what_its_config_does(words: list[str]) -> None:
    config = tiny(*words)
    source = prepare(config.activations, Path("unused"), progress=lambda _: None)
    plan = make_plan(config, source)
    assert plan_shape(plan) == cost_shape(config, source.d_model)
    assert plan.estimated_memory_bytes == memory_bytes(config, source.d_model)


def test_a_dry_run_shows_ranks_and_their_memory(capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(*MESH)
    source = prepare(config.activations, Path("unused"), progress=lambda _: None)
    plan = make_plan(config, source)
    alone = replace(plan, mesh=replace(plan.mesh, dp=1, latent=1))
    print_preview([plan], [], 1, Console(width=200))
    said = capsys.readouterr().out
    size = budget.rank_bytes(plan_shape(plan)) / GIB
    assert f"mesh.dp=2 mesh.latent=2: 4 ranks per run, {size:.2f} GiB each at most" in said
    print_preview([alone], [], 1, Console(width=200))
    assert "ranks per run" not in capsys.readouterr().out
    assert footprint.local_ranks(config) == 4
