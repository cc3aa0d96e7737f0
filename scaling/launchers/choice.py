"""The launcher that a config names, as the launch uses it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from scaling.activations import build
from scaling.activations.progress import ProgressCallback
from scaling.activations.source import SourceSpec
from scaling.config import ActivationsConfig
from scaling.errors import UserError
from scaling.launcher_config import DeepSpeedLauncherConfig, LauncherConfig, SlurmLauncherConfig
from scaling.launchers import preview
from scaling.launchers.hosts import NO_REMOTE, RUNNER
from scaling.plan import RunPlan
from scaling.runs.store import SweepStore
from scaling.sweep.execute import ExecuteOptions, Summary, execute
from scaling.sweep.schedule import Schedule

PDSH = "pdsh"


class Launcher(Protocol):
    def check(self) -> None:
        """Raises UserError where this host cannot launch; dry_run does not ask."""
        ...

    def preview(self, plans: Sequence[RunPlan], store: SweepStore, console: Console) -> None:
        """What would be submitted or started, for dry_run."""
        ...

    def prepare(
        self, config: ActivationsConfig, data_dir: Path, store: SweepStore, tell: ProgressCallback
    ) -> SourceSpec:
        """Make the activations exist."""
        ...

    def execute(
        self, plans: Sequence[RunPlan], store: SweepStore, options: ExecuteOptions, console: Console
    ) -> Summary: ...


def launcher_for(config: LauncherConfig) -> Launcher:
    match config:
        case SlurmLauncherConfig():
            return OnSlurm(config)
        case DeepSpeedLauncherConfig():
            return OnHosts(config)
        case _:
            return Here()


def runs_elsewhere(launcher: dict[str, Any]) -> int | None:
    """Runs at a time where a planned launcher does not use this machine; None = it does."""
    match launcher["name"]:
        case "slurm":
            return launcher["max_parallel"]
        case "deepspeed":
            return 1
        case _:
            return None


class Here:
    """Processes of this machine."""

    def check(self) -> None:
        pass

    def preview(self, plans: Sequence[RunPlan], store: SweepStore, console: Console) -> None:
        pass

    def prepare(
        self, config: ActivationsConfig, data_dir: Path, store: SweepStore, tell: ProgressCallback
    ) -> SourceSpec:
        return build.prepare(config, data_dir, progress=tell)

    def execute(
        self, plans: Sequence[RunPlan], store: SweepStore, options: ExecuteOptions, console: Console
    ) -> Summary:
        return execute(plans, store, options, console, Schedule)


class OnSlurm:
    """The jobs of a SLURM cluster. submitit is imported only to submit."""

    def __init__(self, config: SlurmLauncherConfig) -> None:
        self._config = config

    def check(self) -> None:
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise UserError(
                "launcher=slurm needs the package submitit: pip install 'sae-scaling[slurm]'."
            ) from error
        from scaling.launchers.slurm import check_slurm

        check_slurm()

    def preview(self, plans: Sequence[RunPlan], store: SweepStore, console: Console) -> None:
        preview.print_slurm(plans, self._config, store, console)

    def prepare(
        self, config: ActivationsConfig, data_dir: Path, store: SweepStore, tell: ProgressCallback
    ) -> SourceSpec:
        if self._config.harvest_nodes and not build.describe(config, data_dir).ready:
            from scaling.launchers.harvest_job import harvest_on_slurm

            harvest_on_slurm(config, data_dir, self._config, store, tell)
        return build.prepare(config, data_dir, progress=tell)

    def execute(
        self, plans: Sequence[RunPlan], store: SweepStore, options: ExecuteOptions, console: Console
    ) -> Summary:
        from scaling.launchers.slurm import SlurmSchedule

        return execute(plans, store, options, console, partial(SlurmSchedule, self._config))


class OnHosts(Here):
    """The hosts of a hostfile, one run at a time; the activations are harvested here."""

    def __init__(self, config: DeepSpeedLauncherConfig) -> None:
        self._config = config

    def check(self) -> None:
        remote = self._config.remote
        if remote == PDSH and shutil.which(PDSH) is None:
            raise UserError(
                "launcher.remote=pdsh, but pdsh is not on PATH. Install it here (it needs ssh to "
                "the hosts), choose another of DeepSpeed's launchers, or launcher.remote=none."
            )

    def preview(self, plans: Sequence[RunPlan], store: SweepStore, console: Console) -> None:
        preview.print_hosts(plans, self._config, store, console)

    def execute(
        self, plans: Sequence[RunPlan], store: SweepStore, options: ExecuteOptions, console: Console
    ) -> Summary:
        if self._config.remote == NO_REMOTE:
            console.print(preview.how_to_join(self._config, store), markup=False, soft_wrap=True)
        options = replace(options, workers=1, devices=None, runner=RUNNER)
        return execute(plans, store, options, console, Schedule)
