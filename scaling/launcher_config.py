"""The keys of `launcher`: what starts the processes of a sweep's runs, here or on many nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from scaling.choices import LauncherName


@dataclass(kw_only=True)
class LauncherConfig:
    """What starts the processes of a sweep's runs. None of it is part of a run's identity."""

    name: LauncherName = MISSING
    workers: int | None = None
    """Runs at a time; null = as many as cores (or GPUs) and memory allow."""
    threads: int = 1
    """CPU threads per process (a run has mesh.dp * mesh.latent of them)."""
    retries: int = 1
    """Further attempts, from the last checkpoint, for a run of which a process died."""
    lease_timeout_s: float = 60.0
    """A run whose holder gave no sign of life for this long may be taken over."""
    collective_timeout_s: float = 600.0
    """A run of several processes ends when one of its collectives takes longer."""
    multiplex: bool = False
    """Train runs with the same batches by turns in one process, which reads each batch once. Only
    launcher=local. It changes no result: see docs/multiplex.md."""


@dataclass(kw_only=True)
class LocalLauncherConfig(LauncherConfig):
    """Processes of this machine."""

    name: LauncherName = LauncherName.local


@dataclass(kw_only=True)
class DeepSpeedLauncherConfig(LauncherConfig):
    """Processes on the hosts of a hostfile, one run at a time, by DeepSpeed's launcher."""

    name: LauncherName = LauncherName.deepspeed
    hostfile: str | None = None
    """DeepSpeed's format: one "HOST slots=N" per line. runs_dir must be a folder all hosts see."""
    remote: str = "pdsh"
    """How it reaches the hosts: DeepSpeed's --launcher (needs ssh), or "none": each other host runs
    `python -m scaling.join`."""
    master_port: int = 29500


@dataclass(kw_only=True)
class SlurmLauncherConfig(LauncherConfig):
    """One SLURM array per launch, one element per run. runs_dir must be a folder all nodes see."""

    name: LauncherName = LauncherName.slurm
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_minutes: int = 24 * 60
    ranks_per_node: int | None = None
    """Processes of a run on one node; null = its GPUs as `gpus_per_node`, or all of the run's."""
    gpus_per_node: int | None = None
    """Asked of SLURM; null = none (CPU runs)."""
    mem_gb: int | None = None
    """Per node; null = the cluster's default."""
    max_parallel: int = 256
    """Elements of the array that run at a time."""
    wait: bool = True
    """Show progress until the jobs are through; false = return once they are submitted."""
    harvest_nodes: int = 1
    """Nodes that harvest missing activations, as a job before the array; 0 = harvest here."""
    harvest_cpus: int = 8
    """Cores of each of these nodes."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before each task, e.g. "module load cuda"."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further sbatch options, by their long names."""
