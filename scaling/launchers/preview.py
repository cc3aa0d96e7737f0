"""What dry_run=true says of launchers for many nodes: what would be submitted or started."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from scaling.launcher_config import SlurmLauncherConfig
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


def _head(shape: Shape, n_runs: int) -> str:
    what = "One SLURM job" if n_runs == 1 else f"One SLURM array of {n_runs} elements, one per run"
    nodes = "one node" if shape.nodes == 1 else f"{shape.nodes} nodes"
    return f"{what}, each on {nodes} with {shape.ranks_per_node} processes per node:"


def _print(console: Console, head: str, lines: Sequence[str]) -> None:
    console.print(head, markup=False, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
