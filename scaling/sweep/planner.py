"""From a user's config and a prepared source to a frozen plan: all rules resolved, once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from scaling import budget
from scaling.activations.source import SourceSpec
from scaling.choices import LrRule, Precision
from scaling.config import RunConfig
from scaling.plan import (
    MeshPlan,
    NumericsPlan,
    ObservePlan,
    RunPlan,
    TrainPlan,
)
from scaling.schedule import RULES, PowerRule
from scaling.sweep.architectures import plan_autoencoder
from scaling.sweep.execution import plan_execution
from scaling.sweep.footprint import local_ranks, memory_bytes
from scaling.train_config import TrainConfig

BYTES_PER_VALUE = {"float32": 4, "float64": 8, "bf16": 4}
ROWS_PER_RUN = 100
"""Rows of metrics.jsonl when logger.every_tokens is null."""
CHECKPOINTS_PER_RUN = 10


def make_plan(config: RunConfig, source: SourceSpec) -> RunPlan:
    """Settle every number of one validated point."""
    train = _train(config)
    return RunPlan(
        sweep_name=config.sweep_name,
        tokens_requested=config.train.tokens,
        autoencoder=plan_autoencoder(config.autoencoder, source.d_model, train.steps),
        train=train,
        numerics=_numerics(config),
        source=source,
        execution=plan_execution(config, source.d_model),
        observe=_observe(config),
        config=_plain(asdict(config)),
        retries=config.launcher.retries,
        lease_timeout_s=config.launcher.lease_timeout_s,
        estimated_memory_bytes=memory_bytes(config, source.d_model)
        + local_ranks(config) * source.memory_bytes,
        mesh=MeshPlan(dp=config.mesh.dp, latent=config.mesh.latent),
        collective_timeout_s=config.launcher.collective_timeout_s,
    )


def _numerics(config: RunConfig) -> NumericsPlan:
    precision, mesh = config.numerics.precision, config.mesh
    factor = mesh.capacity_factor
    if factor is not None and factor >= mesh.latent:  # every shard may offer all of the k largest
        factor = None
    exact = factor is None and precision is not Precision.bf16
    return NumericsPlan(
        precision=str(precision),
        capacity_factor=factor,
        selection_shards=None if exact or mesh.latent == 1 else mesh.latent,
    )


def _train(config: RunConfig) -> TrainPlan:
    train = config.train
    return TrainPlan(
        steps=budget.n_steps(train.tokens, train.batch_tokens),
        batch_tokens=train.batch_tokens,
        lr=peak_lr(config),
        warmup_tokens=train.warmup_tokens,
        decay_fraction=train.decay_fraction,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_eps=train.adam_eps,
        clip_norm=train.clip_norm,
        ema_decay=train.ema_decay,
        seed=train.seed,
        shuffle_block=train.shuffle_block,
        on_bad_loss=str(train.on_bad_loss),
        spike_factor=train.spike_factor,
        **_stop(train),
    )


def _stop(train: TrainConfig) -> dict[str, Any]:
    """Its keys enter the identity where the rule is on, and only there."""
    stop = train.stop
    if stop.fall is None:
        return {}
    return {
        "stop_fall": stop.fall,
        "stop_after_tokens": stop.after_tokens,
        "stop_per_doubling": stop.per_doubling,
    }


def peak_lr(config: RunConfig) -> float:
    """The rate that `train.lr` or its rule settles to, times `train.lr_scale`."""
    train, n_latents = config.train, config.autoencoder.n_latents
    if train.lr is not None:
        return train.lr * train.lr_scale
    rate = lr_rule(train).at(n_latents, train.tokens, train.batch_tokens)
    return rate * train.lr_scale


def lr_rule(train: TrainConfig) -> PowerRule:
    """What `train.lr_rule` and, for one's own, `train.lr_power` say (its lr is validated)."""
    if train.lr_rule is not LrRule.power:
        return RULES[train.lr_rule]
    own = train.lr_power
    assert own.lr is not None
    return PowerRule(own.lr, n=own.n, tokens=own.tokens, batch=own.batch)


def _observe(config: RunConfig) -> ObservePlan:
    batch = config.train.batch_tokens
    steps = budget.n_steps(config.train.tokens, batch)

    def in_steps(tokens: int | None, parts: int) -> int:
        return max(1, steps // parts if tokens is None else tokens // batch)

    every = config.evaluation.every_tokens
    return ObservePlan(
        log_every_steps=in_steps(config.logger.every_tokens, ROWS_PER_RUN),
        eval_every_steps=None if every is None else max(1, every // batch),
        checkpoint_every_steps=in_steps(config.checkpoint.every_tokens, CHECKPOINTS_PER_RUN),
        keep_checkpoints=config.checkpoint.keep,
        eval_batch_tokens=config.evaluation.batch_tokens,
        profile=config.debug.profile,
    )


def _plain(value: Any) -> Any:
    """Config values as JSON has them: enums by name."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
