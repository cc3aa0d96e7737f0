"""Every check that needs no computing, before any computing: one paragraph with the remedy each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter
from pathlib import Path

from scaling.choices import ExchangeName, LrRule
from scaling.config import RunConfig, TopKConfig
from scaling.errors import UserError
from scaling.launcher_config import DeepSpeedLauncherConfig, SlurmLauncherConfig
from scaling.launchers.hostfile import hosts_for, read_hostfile
from scaling.launchers.slurm_params import shape_of
from scaling.plan import MeshPlan
from scaling.train_config import LrPowerConfig, TrainConfig


def validate(config: RunConfig, *, n_train: int | None) -> None:
    """Check one point's keys against each other and against the data it will see.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    _check_present(config)
    _check_autoencoder(config)
    _check_train(config)
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


LARGEST_RATE = 1e18
"""Of train.lr and train.lr_scale each, so that a step stays within float32; long before it, every
run diverges."""
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


def _check_present(config: RunConfig) -> None:
    for key, value in (
        ("autoencoder.n_latents", config.autoencoder.n_latents),
        ("autoencoder.k", config.autoencoder.k),
    ):
        if not isinstance(value, int):
            raise UserError(f"{key} is not set. Give it on the command line, e.g. {key}=1024.")


def _check_autoencoder(config: RunConfig) -> None:
    ae = config.autoencoder
    _at_least("autoencoder.n_latents", ae.n_latents, 1)
    _at_least("autoencoder.k", ae.k, 1)
    if ae.k > ae.n_latents:
        raise UserError(
            f"autoencoder.k={ae.k} is larger than autoencoder.n_latents={ae.n_latents}: a token "
            f"cannot have more active latents than there are. Set k to at most {ae.n_latents}."
        )
    if isinstance(ae, TopKConfig):
        _at_least("autoencoder.dead_after_tokens", ae.dead_after_tokens, 1)
        _at_least("autoencoder.aux_coef", ae.aux_coef, 0)
        if ae.k_aux is not None:
            _at_least("autoencoder.k_aux", ae.k_aux, 1)


def _check_train(config: RunConfig) -> None:
    train = config.train
    _at_least("train.batch_tokens", train.batch_tokens, 1)
    _at_least("train.shuffle_block", train.shuffle_block, 1)
    _at_least("train.warmup_tokens", train.warmup_tokens, 0)
    _at_least("train.seed", train.seed, 0)
    if train.tokens < train.batch_tokens:
        raise UserError(
            f"train.tokens={train.tokens} is less than one batch "
            f"(train.batch_tokens={train.batch_tokens}). Raise the one or lower the other."
        )
    if train.warmup_tokens >= train.tokens:
        raise UserError(
            f"train.warmup_tokens={train.warmup_tokens} leaves nothing of train.tokens="
            f"{train.tokens}: the learning rate would never reach its peak. Lower it."
        )
    _check_rates(train)
    _check_stop(train)
    _positive("train.clip_norm", train.clip_norm)
    _positive("train.adam_eps", train.adam_eps)
    if train.spike_factor is not None:
        _within("train.spike_factor", train.spike_factor, lambda v: v > 1, "above 1")
    _within("train.decay_fraction", train.decay_fraction, lambda v: 0 <= v <= 1, "0..1")
    for key in ("adam_beta1", "adam_beta2", "ema_decay"):
        _within(f"train.{key}", getattr(train, key), lambda v: 0 <= v < 1, "0 up to below 1")


def _check_rates(train: TrainConfig) -> None:
    own = train.lr_power
    for key, value in (
        ("train.lr", train.lr),
        ("train.lr_scale", train.lr_scale),
        ("train.lr_power.lr", own.lr),
    ):
        _positive(key, value)
        if value is not None:
            _within(key, value, lambda v: v <= LARGEST_RATE, f"at most {LARGEST_RATE:.0e}")
    for key in ("n", "tokens", "batch"):
        _within(f"train.lr_power.{key}", getattr(own, key), lambda v: abs(v) <= 4, "-4..4")
    if train.lr_rule is LrRule.power and train.lr is None and own.lr is None:
        raise UserError(
            "train.lr_power.lr is not set, from which train.lr_rule=power begins. Give the keys "
            "that python -m analysis.calibrate prints, or another train.lr_rule."
        )
    if train.lr_rule is not LrRule.power and own != LrPowerConfig():
        raise UserError(
            f"train.lr_power is not read by train.lr_rule={train.lr_rule}. Set "
            "train.lr_rule=power, or leave train.lr_power out."
        )


def _check_stop(train: TrainConfig) -> None:
    stop = train.stop
    if stop.fall is None:
        return
    _within("train.stop.fall", stop.fall, lambda v: 0 < v < 1, "above 0 and below 1")
    _within("train.stop.per_doubling", stop.per_doubling, lambda v: 1 <= v <= 16, "1..16")
    _at_least("train.stop.after_tokens", stop.after_tokens, 1)
    if train.decay_fraction:
        raise UserError(
            f"train.decay_fraction={train.decay_fraction} with train.stop.fall: a rate that falls "
            "towards a planned end cannot meet one that is not planned. Set train.decay_fraction=0."
        )
    if not train.ema_decay:
        raise UserError(
            "train.ema_decay=0 keeps no averaged weights, by whose loss train.stop.fall judges. "
            "Set train.ema_decay=0.999."
        )
    if 2 * stop.after_tokens > train.tokens:
        raise UserError(
            f"train.stop.after_tokens={stop.after_tokens} leaves no doubling to judge within "
            f"train.tokens={train.tokens}. Lower the one or raise the other."
        )


def _check_data(config: RunConfig, n_train: int | None) -> None:
    if n_train is not None and config.train.batch_tokens > n_train:
        raise UserError(
            f"train.batch_tokens={config.train.batch_tokens} is larger than the training data of "
            f"{n_train} vectors. Lower it, or raise activations.max_tokens."
        )


def _check_rest(config: RunConfig) -> None:
    _check_mesh(config)
    _check_launcher(config)
    _at_least("evaluation.batch_tokens", config.evaluation.batch_tokens, 1)
    _at_least("checkpoint.keep", config.checkpoint.keep, 1)
    cores = os.cpu_count() or 1
    _within("launcher.threads", config.launcher.threads, lambda v: 1 <= v <= cores, f"1..{cores}")
    _at_least("launcher.retries", config.launcher.retries, 0)
    for key in ("lease_timeout_s", "collective_timeout_s"):
        value = getattr(config.launcher, key)
        _within(f"launcher.{key}", value, lambda v: 1 <= v <= MAX_TIMEOUT_S, "1 to 86400 seconds")
    _positive("sweep.max_hours", config.sweep.max_hours)
    for key, value in (
        ("launcher.workers", config.launcher.workers),
        ("evaluation.every_tokens", config.evaluation.every_tokens),
        ("checkpoint.every_tokens", config.checkpoint.every_tokens),
        ("logger.every_tokens", config.logger.every_tokens),
    ):
        if value is not None:
            _at_least(key, value, 1)
    name = config.sweep_name
    if not name or "/" in name or name.startswith(".") or len(name) > MAX_NAME_LENGTH:
        raise UserError(
            f"sweep_name={name!r} becomes a folder under runs_dir: use a plain name of at most "
            f"{MAX_NAME_LENGTH} characters, without slashes or a leading dot."
        )


def _check_launcher(config: RunConfig) -> None:
    launcher, mesh = config.launcher, MeshPlan(dp=config.mesh.dp, latent=config.mesh.latent)
    if isinstance(launcher, DeepSpeedLauncherConfig):
        if not launcher.hostfile:
            raise UserError(
                'launcher.hostfile is not set: launcher=deepspeed reads its hosts ("HOST slots=N", '
                "one a line) from there. Give launcher.hostfile=FILE."
            )
        hosts = read_hostfile(Path(launcher.hostfile))
        hosts_for(hosts, mesh.world_size, launcher.hostfile)
        _within("launcher.master_port", launcher.master_port, lambda p: 0 < p < 65536, "1..65535")
    if isinstance(launcher, SlurmLauncherConfig):
        for key in ("time_minutes", "max_parallel", "harvest_cpus"):
            _at_least(f"launcher.{key}", getattr(launcher, key), 1)
        for key in ("ranks_per_node", "gpus_per_node", "mem_gb"):
            if (value := getattr(launcher, key)) is not None:
                _at_least(f"launcher.{key}", value, 1)
        _at_least("launcher.harvest_nodes", launcher.harvest_nodes, 0)
        shape_of(mesh, launcher)


def _check_mesh(config: RunConfig) -> None:
    mesh, n_latents, batch = config.mesh, config.autoencoder.n_latents, config.train.batch_tokens
    _at_least("mesh.dp", mesh.dp, 1)
    _at_least("mesh.latent", mesh.latent, 1)
    _positive("mesh.capacity_factor", mesh.capacity_factor)
    _within("mesh.zero_stage", mesh.zero_stage, lambda v: v in (1, 2), "1 or 2")
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


def _at_least(key: str, value: float, least: float) -> None:
    _within(key, value, lambda v: v >= least, f"{least} or more")


def _positive(key: str, value: float | None) -> None:
    if value is not None:
        _within(key, value, lambda v: v > 0, "above 0")


def _within(key: str, value: float, holds: Callable[[float], bool], allowed: str) -> None:
    if not holds(value):
        raise UserError(f"{key}={value} is out of range. Set it to {allowed}.")
