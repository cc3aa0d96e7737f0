"""From a user's config and a prepared source to a frozen plan: all rules resolved, once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from scaling import budget, memory
from scaling.activations.source import SourceSpec
from scaling.choices import LrRule
from scaling.config import RunConfig, TopKConfig
from scaling.errors import UserError
from scaling.plan import (
    AutoencoderPlan,
    MeshPlan,
    NumericsPlan,
    ObservePlan,
    RunPlan,
    TrainPlan,
)
from scaling.schedule import inverse_sqrt_n, step_limited
from scaling.sweep.execution import plan_execution

BYTES_PER_VALUE = {"float32": 4, "float64": 8, "bf16": 4}
ROWS_PER_RUN = 100
"""Rows of metrics.jsonl when logger.every_tokens is null."""
CHECKPOINTS_PER_RUN = 10


def make_plan(config: RunConfig, source: SourceSpec) -> RunPlan:
    """Settle every number of one validated point."""
    return RunPlan(
        sweep_name=config.sweep_name,
        tokens_requested=config.train.tokens,
        autoencoder=_autoencoder(config, source.d_model),
        train=_train(config),
        numerics=NumericsPlan(
            precision=str(config.numerics.precision),
            capacity_factor=config.mesh.capacity_factor,
        ),
        source=source,
        execution=plan_execution(config, source.d_model),
        observe=_observe(config),
        config=_plain(asdict(config)),
        retries=config.launcher.retries,
        lease_timeout_s=config.launcher.lease_timeout_s,
        estimated_memory_bytes=memory_bytes(config, source.d_model),
        mesh=MeshPlan(dp=config.mesh.dp, latent=config.mesh.latent),
        collective_timeout_s=config.launcher.collective_timeout_s,
    )


def memory_bytes(config: RunConfig, d_model: int, *, n_latents: int | None = None) -> int:
    """Estimated peak memory of one run (with another n_latents, if given)."""
    return budget.train_memory_bytes(
        n_latents or config.autoencoder.n_latents,
        d_model,
        max(config.train.batch_tokens, config.evaluation.batch_tokens),
        k=config.autoencoder.k,
        threads=config.launcher.threads,
        bytes_per_value=BYTES_PER_VALUE[config.numerics.precision],
        ema=config.train.ema_decay > 0,
    )


def check_memory(config: RunConfig, d_model: int, available_bytes: int | None = None) -> None:
    """Refuse a run that cannot fit.

    Raises:
        UserError: naming autoencoder.n_latents and the largest that would fit.
    """
    available = available_bytes or memory.limit_bytes()
    needed = memory_bytes(config, d_model)
    if needed <= available:
        return
    fits = _largest_n_latents(config, d_model, available)
    remedy = (
        f"Lower autoencoder.n_latents to {fits} or less."
        if fits
        else f"Lower train.batch_tokens={config.train.batch_tokens} or "
        f"evaluation.batch_tokens={config.evaluation.batch_tokens}."
    )
    raise UserError(
        f"autoencoder.n_latents={config.autoencoder.n_latents} at d_model={d_model} needs about "
        f"{needed / budget.GIB:.1f} GiB and {available / budget.GIB:.1f} GiB may be used. {remedy}"
    )


def _largest_n_latents(config: RunConfig, d_model: int, available: int) -> int:
    """The most latents that fit, by bisection; 0 if not even one does."""
    low, high = 0, config.autoencoder.n_latents
    while high - low > 1:
        middle = (low + high) // 2
        fits = memory_bytes(config, d_model, n_latents=middle) <= available
        low, high = (middle, high) if fits else (low, middle)
    return low


def _autoencoder(config: RunConfig, d_model: int) -> AutoencoderPlan:
    ae = config.autoencoder
    assert isinstance(ae, TopKConfig)  # the only architecture that conf/autoencoder offers
    return AutoencoderPlan(
        name="topk",
        n_latents=ae.n_latents,
        k=ae.k,
        k_aux=budget.power_of_two_near(d_model / 2) if ae.k_aux is None else ae.k_aux,
        aux_coef=ae.aux_coef,
        dead_after_tokens=ae.dead_after_tokens,
        b_pre_init=str(ae.b_pre_init),
        encoder_init=str(ae.encoder_init),
        scale_encoder=ae.scale_encoder,
    )


def _train(config: RunConfig) -> TrainPlan:
    train = config.train
    return TrainPlan(
        steps=budget.n_steps(train.tokens, train.batch_tokens),
        batch_tokens=train.batch_tokens,
        lr=_peak_lr(config),
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
    )


def _peak_lr(config: RunConfig) -> float:
    train, n_latents = config.train, config.autoencoder.n_latents
    if train.lr is not None:
        return train.lr * train.lr_scale
    match train.lr_rule:
        case LrRule.inverse_sqrt_n:
            rate = inverse_sqrt_n(n_latents)
        case LrRule.step_limited:
            rate = step_limited(n_latents, train.tokens, train.batch_tokens)
    return rate * train.lr_scale


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
