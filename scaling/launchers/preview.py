"""What dry_run=true says of launchers for many nodes: what would be submitted or started."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scaling.launcher_config import DeepSpeedLauncherConfig, SlurmLauncherConfig
from scaling.launchers.hostfile import Host, hosts_for, read_hostfile
from scaling.launchers.hosts import NO_REMOTE, runner_command
from scaling.launchers.slurm_params import (
    Shape,
    by_shape,
    harvest_parameters,
    run_parameters,
    sbatch_lines,
)
from scaling.plan import RunPlan
from scaling.runs.store import SweepStore


def print_slurm(
    plans: Sequence[RunPlan], launcher: SlurmLauncherConfig, store: SweepStore, console: Console
) -> None:
    """The parameters of each array, and of the harvest where something is missing."""
    if launcher.harvest_nodes and any(not plan.source.content_hash for plan in plans):
        lines = sbatch_lines(harvest_parameters(launcher, store.name), 1)
        what = f"each source of activations that is missing, on {launcher.harvest_nodes} nodes"
        _print(console, f"First a SLURM job for {what}:", lines)
    for shape, group in by_shape(plans, launcher).items():
        lines = sbatch_lines(run_parameters(launcher, store.name, shape), len(group))
        _print(console, _head(shape, len(group)), lines)
    console.print(f"Scripts and logs would be in {store.path / 'slurm'}.", soft_wrap=True)


def print_hosts(
    plans: Sequence[RunPlan], launcher: DeepSpeedLauncherConfig, store: SweepStore, console: Console
) -> None:
    """The hosts and the command of each run, which go one after the other."""
    for plan in plans:
        hosts = _hosts(launcher, plan.mesh.world_size)
        folder = store.folder(plan.run_id if plan.source.content_hash else "RUN_ID")
        attempt = folder.path / "attempts" / "TOKEN" / "TRY"
        arguments = ["--run", str(folder.path), "--token", "TOKEN", "--attempt", str(attempt)]
        command = runner_command(attempt / "hostfile", hosts, launcher, arguments, node=0)
        head = f"{plan.title}, on {', '.join(map(str, hosts))}:"
        _print(console, head, [shlex.join(command)])
    if launcher.remote == NO_REMOTE:
        console.print(how_to_join(launcher, store), markup=False, soft_wrap=True)


def how_to_join(launcher: DeepSpeedLauncherConfig, store: SweepStore) -> str:
    """For people: what to start on the hosts that nothing reaches."""
    first, *others = _hosts(launcher, None)
    commands = [f"  python -m scaling.join {store.path} --host {host.name}" for host in others]
    return "\n".join([f"launch on {first.name}; on each other host run, now or later:", *commands])


def _hosts(launcher: DeepSpeedLauncherConfig, world_size: int | None) -> list[Host]:
    assert launcher.hostfile is not None  # checked by validate
    hosts = read_hostfile(Path(launcher.hostfile))
    return hosts if world_size is None else hosts_for(hosts, world_size, launcher.hostfile)


def _head(shape: Shape, n_runs: int) -> str:
    what = "One SLURM job" if n_runs == 1 else f"One SLURM array of {n_runs} elements, one per run"
    nodes = "one node" if shape.nodes == 1 else f"{shape.nodes} nodes"
    return f"{what}, each on {nodes} with {shape.ranks_per_node} processes per node:"


def _print(console: Console, head: str, lines: Sequence[str]) -> None:
    console.print(head, markup=False, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
