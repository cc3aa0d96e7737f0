"""Every check that needs no computing, before any computing: one paragraph with the remedy each."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter
from pathlib import Path

from scaling.autoencoder_config import has_dense_code, name_of
from scaling.choices import EngineName, ExchangeName, LauncherName, Precision
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.launcher_config import DeepSpeedLauncherConfig, SlurmLauncherConfig
from scaling.launchers.hostfile import hosts_for, read_hostfile
from scaling.launchers.slurm_params import shape_of
from scaling.plan import MeshPlan
from scaling.sweep.architectures import check_autoencoder
from scaling.sweep.dead_latents import check_resampling
from scaling.sweep.ranges import at_least, positive, within
from scaling.sweep.validate_train import check_train


def validate(config: RunConfig, *, n_train: int | None) -> None:
    """Check one point's keys against each other and against the data it will see.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    check_autoencoder(config.autoencoder)
    check_train(config)
    check_resampling(config)
    _check_data(config, n_train)
    _check_rest(config)


def check_numbers(config: object, prefix: str = "") -> None:
    """No key may be NaN, infinite or beyond 64 bits; the first check, before anything computes.

    Raises:
        UserError: naming the key and its value.
    """
    for field in fields(config):  # type: ignore[arg-type]
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if is_dataclass(value):
            check_numbers(value, f"{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value} is not a finite number. Set it to one.")
        elif isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise UserError(f"{key}={value} is beyond {LARGEST_NUMBER}. Set it to a smaller one.")


def check_folders(config: RunConfig) -> None:
    """runs_dir and data_dir must be folders that can be made and written to.

    Raises:
        UserError: naming the key and its value.
    """
    for key in ("runs_dir", "data_dir"):
        folder = Path(getattr(config, key)).expanduser().absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(
                f"{key}={getattr(config, key)} cannot be written: {existing} is no folder or not "
                f"yours to write. Set {key} to another folder."
            )


def check_shared(points: Sequence[RunConfig]) -> None:
    """Keys that steer the launch must be the same for all its points.

    Raises:
        UserError: naming the key and two of its values.
    """
    for key in _OF_THE_LAUNCH:
        values = [attrgetter(key)(point) for point in points]
        for value in values[1:]:
            if value != values[0]:
                raise UserError(
                    f"{key} is {values[0]!r} for one point and {value!r} for another: it steers "
                    "the whole launch. Give it one value, or launch once for each."
                )


LARGEST_NUMBER = 2**62
MAX_NAME_LENGTH = 100
MAX_TIMEOUT_S = 86_400

_OF_THE_LAUNCH = (
    "runs_dir",
    "data_dir",
    "sweep_name",
    "dry_run",
    "device",
    "logger",
    "launcher",
    "sweep.max_hours",
)


def _check_data(config: RunConfig, n_train: int | None) -> None:
    if n_train is not None and config.train.batch_tokens > n_train:
        raise UserError(
            f"train.batch_tokens={config.train.batch_tokens} is larger than the training data of "
            f"{n_train} vectors. Lower it, or raise activations.max_tokens."
        )


def _check_rest(config: RunConfig) -> None:
    _check_precision(config)
    _check_mesh(config)
    _check_launcher(config)
    at_least("evaluation.batch_tokens", config.evaluation.batch_tokens, 1)
    at_least("checkpoint.keep", config.checkpoint.keep, 1)
    cores = os.cpu_count() or 1
    within("launcher.threads", config.launcher.threads, lambda v: 1 <= v <= cores, f"1..{cores}")
    at_least("launcher.retries", config.launcher.retries, 0)
    for key in ("lease_timeout_s", "collective_timeout_s"):
        value = getattr(config.launcher, key)
        within(f"launcher.{key}", value, lambda v: 1 <= v <= MAX_TIMEOUT_S, "1 to 86400 seconds")
    positive("sweep.max_hours", config.sweep.max_hours)
    for key, value in (
        ("launcher.workers", config.launcher.workers),
        ("evaluation.every_tokens", config.evaluation.every_tokens),
        ("checkpoint.every_tokens", config.checkpoint.every_tokens),
        ("logger.every_tokens", config.logger.every_tokens),
    ):
        if value is not None:
            at_least(key, value, 1)
    name = config.sweep_name
    if not name or "/" in name or name.startswith(".") or len(name) > MAX_NAME_LENGTH:
        raise UserError(
            f"sweep_name={name!r} becomes a folder under runs_dir: use a plain name of at most "
            f"{MAX_NAME_LENGTH} characters, without slashes or a leading dot."
        )


def _check_precision(config: RunConfig) -> None:
    ae = config.autoencoder
    if config.numerics.precision is Precision.bf16 and has_dense_code(ae):
        raise UserError(
            f"numerics.precision=bf16 with autoencoder={name_of(ae)}: bf16 is of the kernels that "
            "select k latents of each token, which it does not use. Set numerics.precision=float32."
        )


def _check_multiplex(config: RunConfig) -> None:
    mesh, launcher = config.mesh, config.launcher.name
    reasons = {
        f"launcher={launcher}: it gives every run processes of its own. Use launcher=local": (
            launcher is not LauncherName.local
        ),
        f"mesh.dp={mesh.dp} mesh.latent={mesh.latent}: it trains runs of one process by turns. "
        "Use mesh.dp=1 mesh.latent=1": mesh.dp * mesh.latent > 1,
        "engine=deepspeed: it gives every run processes of its own. Use engine=auto": (
            config.engine is EngineName.deepspeed
        ),
        "debug.profile=true: a process has one profiler. Use debug.profile=false": (
            config.debug.profile
        ),
    }
    for reason, applies in reasons.items():
        if config.launcher.multiplex and applies:
            raise UserError(f"launcher.multiplex=true with {reason}, or launcher.multiplex=false.")


def _check_launcher(config: RunConfig) -> None:
    _check_multiplex(config)
    launcher, mesh = config.launcher, MeshPlan(dp=config.mesh.dp, latent=config.mesh.latent)
    if isinstance(launcher, DeepSpeedLauncherConfig):
        if not launcher.hostfile:
            raise UserError(
                'launcher.hostfile is not set: launcher=deepspeed reads its hosts ("HOST slots=N", '
                "one a line) from there. Give launcher.hostfile=FILE."
            )
        hosts = read_hostfile(Path(launcher.hostfile))
        hosts_for(hosts, mesh.world_size, launcher.hostfile)
        within("launcher.master_port", launcher.master_port, lambda p: 0 < p < 65536, "1..65535")
    if isinstance(launcher, SlurmLauncherConfig):
        for key in ("time_minutes", "max_parallel", "harvest_cpus"):
            at_least(f"launcher.{key}", getattr(launcher, key), 1)
        for key in ("ranks_per_node", "gpus_per_node", "mem_gb"):
            if (value := getattr(launcher, key)) is not None:
                at_least(f"launcher.{key}", value, 1)
        at_least("launcher.harvest_nodes", launcher.harvest_nodes, 0)
        shape_of(mesh, launcher)


def _check_mesh(config: RunConfig) -> None:
    mesh, n_latents, batch = config.mesh, config.autoencoder.n_latents, config.train.batch_tokens
    at_least("mesh.dp", mesh.dp, 1)
    at_least("mesh.latent", mesh.latent, 1)
    positive("mesh.capacity_factor", mesh.capacity_factor)
    if mesh.capacity_factor is not None and has_dense_code(config.autoencoder):
        raise UserError(
            f"mesh.capacity_factor={mesh.capacity_factor} with autoencoder="
            f"{name_of(config.autoencoder)}: a capacity is of a selection of k latents of each "
            "token, which it does not make. Leave it out."
        )
    within("mesh.zero_stage", mesh.zero_stage, lambda v: v in (1, 2), "1 or 2")
    if n_latents % mesh.latent:
        raise UserError(
            f"mesh.latent={mesh.latent} does not divide autoencoder.n_latents={n_latents}: every "
            "shard holds the same number of latents. Change the one or the other."
        )
    if batch % mesh.dp:
        raise UserError(
            f"mesh.dp={mesh.dp} does not divide train.batch_tokens={batch}: every replica takes "
            "the same number of tokens of a step. Change the one or the other."
        )
    if mesh.exchange is ExchangeName.butterfly and mesh.latent & (mesh.latent - 1):
        raise UserError(
            f"mesh.exchange=butterfly with mesh.latent={mesh.latent}: it needs a power of two. "
            "Use mesh.exchange=auto."
        )
