"""What sbatch is asked for, from the launcher's keys and the mesh."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.errors import UserError
from scaling.launcher_config import SlurmLauncherConfig
from scaling.launchers.slurm_params import (
    Shape,
    harvest_parameters,
    run_parameters,
    sbatch_lines,
    shape_of,
)
from scaling.plan import MeshPlan


@pytest.mark.parametrize(
    ("dp", "latent", "keys", "shape"),
    [
        (1, 1, {}, Shape(1, 1)),
        (2, 4, {}, Shape(1, 8)),
        (2, 4, {"ranks_per_node": 2}, Shape(4, 2)),
        (2, 4, {"gpus_per_node": 4}, Shape(2, 4)),
        (1, 2, {"gpus_per_node": 8}, Shape(1, 2)),
        (2, 4, {"gpus_per_node": 4, "ranks_per_node": 1}, Shape(8, 1)),
    ],
)
def test_a_run_lies_on_as_few_nodes_as_hold_it(
    dp: int, latent: int, keys: dict[str, int], shape: Shape
) -> None:
    assert shape_of(MeshPlan(dp=dp, latent=latent), SlurmLauncherConfig(**keys)) == shape


def test_a_mesh_must_fill_its_nodes() -> None:
    with pytest.raises(UserError, match=r"gpus_per_node=4 does not divide the 6 processes"):
        shape_of(MeshPlan(dp=3, latent=2), SlurmLauncherConfig(gpus_per_node=4))


def test_the_keys_become_sbatch_options() -> None:
    launcher = SlurmLauncherConfig(
        partition="long", gpus_per_node=4, mem_gb=64, threads=6, max_parallel=3,
        extra={"constraint": "a100"}, setup=["module load cuda"],
    )  # fmt: skip
    lines = sbatch_lines(run_parameters(launcher, "grid", Shape(2, 4)), 10)
    for line in (
        "--array=0-9%3", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=24",
        "--gpus-per-node=4", "--mem=64GB", "--partition=long", "--constraint=a100", "--requeue",
        "--signal=USR2@90", "--time=1440", "--job-name=sae-grid",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in lines
    assert lines[-2] == "module load cuda"


def test_submitit_writes_what_dry_run_shows(tmp_path: Path) -> None:
    slurm = pytest.importorskip("submitit.slurm.slurm")
    launcher = SlurmLauncherConfig(partition="p", mem_gb=4, gpus_per_node=2, setup=["true"])
    for parameters, n in (
        (run_parameters(launcher, "grid", Shape(2, 2)), 5),
        (harvest_parameters(launcher, "grid"), 1),
    ):
        count = {"map_count": n} if n > 1 else {}
        script = slurm._make_sbatch_string("python", tmp_path, **parameters, **count).splitlines()
        theirs = ("#SBATCH --error", "#SBATCH --output", "#SBATCH --wckey")
        flags = [
            line for line in script if line.startswith("#SBATCH") and not line.startswith(theirs)
        ]
        assert flags == [line for line in sbatch_lines(parameters, n) if line[0] == "#"]
