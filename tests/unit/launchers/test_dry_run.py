"""dry_run=true of the launchers for many nodes, where neither SLURM nor submitit is installed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from scaling.errors import UserError
from scaling.sweep.execution import native_problem, plan_execution
from scaling.sweep.launch import launch
from tests.compose import tiny


def dry_run(tmp_path: Path, *overrides: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    folders = [f"runs_dir={tmp_path / 'runs'}", "sweep_name=grid", "dry_run=true"]
    points = [tiny(*overrides, *folders, f"autoencoder.k={k}") for k in (2, 4)]
    assert launch(points, console) == 0
    assert not (tmp_path / "runs").exists()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    native_problem()  # looks for a compiler once, and remembers
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setenv("PATH", "/nowhere")


def test_slurm_shows_the_array(tmp_path: Path, bare: None) -> None:
    shown = dry_run(tmp_path, "launcher=slurm", "mesh.latent=2", "launcher.ranks_per_node=1")
    assert "One SLURM array of 2 elements, one per run, each on 2 nodes" in shown
    assert "#SBATCH --array=0-1%2" in shown
    assert "#SBATCH --nodes=2" in shown
    assert "harvest" not in shown.partition("One SLURM array")[2]


def test_deepspeed_shows_each_command(tmp_path: Path, bare: None) -> None:
    (tmp_path / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    keys = ["launcher=deepspeed", f"launcher.hostfile={tmp_path / 'hosts'}", "mesh.latent=2"]
    shown = dry_run(tmp_path, *keys)
    assert shown.count("-m deepspeed.launcher.runner --hostfile") == 2
    assert shown.count("--launcher pdsh") == 2
    assert "scaling.join" not in shown
    alone = dry_run(tmp_path, *keys, "launcher.remote=none")
    assert "--no_ssh --node_rank 0" in alone
    assert f"python -m scaling.join {tmp_path / 'runs/grid'} --host beta" in alone
    assert "--host alpha" not in alone


@pytest.mark.parametrize("launcher", ["slurm", "deepspeed"])
def test_without_its_programs_a_launch_says_what_is_missing(
    tmp_path: Path, bare: None, launcher: str
) -> None:
    (tmp_path / "hosts").write_text("alpha slots=1\n")
    keys = [f"launcher={launcher}", f"runs_dir={tmp_path / 'runs'}"]
    keys += [f"launcher.hostfile={tmp_path / 'hosts'}"] if launcher == "deepspeed" else []
    with pytest.raises(UserError, match=r"submitit|pdsh is not on PATH"):
        launch([tiny(*keys)], Console(file=io.StringIO()))
    assert not (tmp_path / "runs").exists()


def test_a_login_node_without_gpus_plans_for_nodes_with_gpus(tmp_path: Path, bare: None) -> None:
    shown = dry_run(
        tmp_path, "launcher=slurm", "launcher.gpus_per_node=8", "mesh.dp=2", "mesh.latent=8"
    )
    assert "--gpus-per-node=8" in shown
    assert "not timed here" in shown
    config = tiny("launcher=slurm", "launcher.gpus_per_node=8", "mesh.latent=8")
    execution = plan_execution(config, 64)
    assert (execution.device, execution.kernels) == ("cuda", "triton")
    with pytest.raises(UserError, match="device=cuda"):
        plan_execution(tiny("device=cuda"), 64)
