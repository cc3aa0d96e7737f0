"""From a launcher's keys and a run's mesh to what sbatch is asked for."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scaling.errors import UserError
from scaling.launcher_config import SlurmLauncherConfig
from scaling.plan import MeshPlan, RunPlan

CHECKPOINT_NOTICE_S = 90
"""So long before the time limit SLURM sends SIGUSR2."""


@dataclass(frozen=True, order=True)
class Shape:
    """How a run's processes lie on nodes."""

    nodes: int
    ranks_per_node: int


def shape_of(mesh: MeshPlan, launcher: SlurmLauncherConfig) -> Shape:
    """The nodes of one run: as few as hold its processes.

    Raises:
        UserError: the mesh does not fill whole nodes.
    """
    world = mesh.world_size
    wanted = launcher.ranks_per_node or launcher.gpus_per_node or world
    ranks = min(wanted, world)
    if world % ranks:
        key = "ranks_per_node" if launcher.ranks_per_node else "gpus_per_node"
        raise UserError(
            f"launcher.{key}={wanted} does not divide the {world} processes of mesh.dp={mesh.dp} "
            f"times mesh.latent={mesh.latent}: every node of a run holds the same number. Change "
            f"the mesh, or set launcher.ranks_per_node to a divisor of {world}."
        )
    return Shape(world // ranks, ranks)


def by_shape(plans: Sequence[RunPlan], launcher: SlurmLauncherConfig) -> dict[Shape, list[RunPlan]]:
    """Runs that can share an array, longest first: arrays start in their order."""
    groups: dict[Shape, list[RunPlan]] = defaultdict(list)
    for plan in sorted(plans, key=lambda p: p.estimated_s or p.tokens, reverse=True):
        groups[shape_of(plan.mesh, launcher)].append(plan)
    return dict(sorted(groups.items()))


def run_parameters(launcher: SlurmLauncherConfig, sweep: str, shape: Shape) -> dict[str, Any]:
    """What submitit is given for an array of runs."""
    gpus = launcher.gpus_per_node
    return {
        **_common(launcher, f"sae-{sweep}"),
        "nodes": shape.nodes,
        "cpus_per_task": launcher.threads * shape.ranks_per_node,
        "array_parallelism": launcher.max_parallel,
        **({} if gpus is None else {"gpus_per_node": min(gpus, shape.ranks_per_node)}),
    }


def harvest_parameters(launcher: SlurmLauncherConfig, sweep: str) -> dict[str, Any]:
    """What submitit is given for the job that harvests."""
    gpus = launcher.gpus_per_node
    return {
        **_common(launcher, f"sae-{sweep}-harvest"),
        "nodes": launcher.harvest_nodes,
        "cpus_per_task": launcher.harvest_cpus,
        # The helpers of a leader that failed would wait for nothing.
        "srun_args": ["--kill-on-bad-exit=1"],
        **({} if gpus is None else {"gpus_per_node": gpus}),
    }


def _common(launcher: SlurmLauncherConfig, name: str) -> dict[str, Any]:
    chosen = {
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "setup": list(launcher.setup) or None,
        "mem": None if launcher.mem_gb is None else f"{launcher.mem_gb}GB",
    }
    return {
        "job_name": name,
        "ntasks_per_node": 1,
        "time": launcher.time_minutes,
        "signal_delay_s": CHECKPOINT_NOTICE_S,
        "additional_parameters": {"requeue": True, **launcher.extra},
        **{key: value for key, value in chosen.items() if value is not None},
    }


def sbatch_lines(parameters: dict[str, Any], n_elements: int) -> list[str]:
    """The same as #SBATCH lines, for people; submitit writes the script that is submitted."""
    values = dict(parameters)
    parallel = values.pop("array_parallelism", None)
    notice, extra = values.pop("signal_delay_s"), values.pop("additional_parameters")
    setup, srun = values.pop("setup", []), values.pop("srun_args", [])
    if n_elements > 1:
        values["array"] = f"0-{n_elements - 1}%{min(n_elements, parallel or n_elements)}"
    values |= {"signal": f"USR2@{notice}", "open-mode": "append", **extra}
    flags = {key.replace("_", "-"): value for key, value in values.items()}
    lines = [_flag(key, flags[key]) for key in sorted(flags)]
    return [*lines, *setup, " ".join(["srun", "--unbuffered", *srun])]


def _flag(key: str, value: object) -> str:
    return f"#SBATCH --{key}" if value is True else f"#SBATCH --{key}={shlex.quote(str(value))}"
