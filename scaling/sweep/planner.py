"""From a user's config and a prepared source to a frozen plan: all rules resolved, once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

from scaling import budget, memory
from scaling.activations.source import SourceSpec
from scaling.choices import LrRule, Precision
from scaling.config import RunConfig, TopKConfig
from scaling.errors import UserError
from scaling.launcher_config import LocalLauncherConfig, SlurmLauncherConfig
from scaling.plan import (
    AutoencoderPlan,
    MeshPlan,
    NumericsPlan,
    ObservePlan,
    RunPlan,
    TrainPlan,
)
from scaling.schedule import RULES, PowerRule
from scaling.sweep.execution import (
    plan_execution,
    planned_device,
    planned_engine,
    planned_exchange,
)
from scaling.train_config import TrainConfig

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
        numerics=_numerics(config),
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


def cost_shape(config: RunConfig, d_model: int, *, n_latents: int | None = None) -> budget.Shape:
    """What the run's cost depends on (with another n_latents, if given).

    The batch counted is the larger of a training step's and an evaluation's, which is not divided
    among replicas.
    """
    ae, mesh, train = config.autoencoder, config.mesh, config.train
    engine, device = planned_engine(config), planned_device(config)
    assert isinstance(ae, TopKConfig)
    return budget.Shape(
        n_latents=n_latents or ae.n_latents,
        d_model=d_model,
        k=ae.k,
        batch_tokens=max(train.batch_tokens, config.evaluation.batch_tokens * mesh.dp),
        k_aux=_k_aux(ae, d_model) if ae.aux_coef else 0,
        dp=mesh.dp,
        latent=mesh.latent,
        engine=engine,
        zero_stage=mesh.zero_stage if engine == "deepspeed" else 0,
        exchange=planned_exchange(config),
        capacity_factor=mesh.capacity_factor,
        precision=str(config.numerics.precision),
        ema=train.ema_decay > 0,
        clip=train.clip_norm is not None,
        device=device,
        threads=config.launcher.threads,
    )


def plan_shape(plan: RunPlan) -> budget.Shape:
    """`cost_shape` of a run that is planned."""
    ae, train, execution = plan.autoencoder, plan.train, plan.execution
    return budget.Shape(
        n_latents=ae.n_latents,
        d_model=plan.source.d_model,
        k=ae.k,
        batch_tokens=max(train.batch_tokens, plan.observe.eval_batch_tokens * plan.mesh.dp),
        k_aux=ae.k_aux if ae.aux_coef else 0,
        dp=plan.mesh.dp,
        latent=plan.mesh.latent,
        engine=execution.engine,
        zero_stage=execution.zero_stage,
        exchange=execution.exchange,
        capacity_factor=plan.numerics.capacity_factor,
        precision=plan.numerics.precision,
        ema=train.ema_decay > 0,
        clip=train.clip_norm is not None,
        device=execution.device,
        threads=execution.threads,
    )


def local_ranks(config: RunConfig) -> int:
    """Processes of a run on one machine."""
    ranks = config.mesh.dp * config.mesh.latent
    if isinstance(config.launcher, SlurmLauncherConfig):
        per_node = config.launcher.ranks_per_node or config.launcher.gpus_per_node
        return min(ranks, per_node or ranks)
    return ranks


def memory_bytes(config: RunConfig, d_model: int, *, n_latents: int | None = None) -> int:
    """Estimated peak memory of one run's processes on one machine (its GPUs' not included)."""
    shape = cost_shape(config, d_model, n_latents=n_latents)
    return local_ranks(config) * budget.host_bytes(shape)


def check_memory(config: RunConfig, d_model: int, available_bytes: int | None = None) -> None:
    """Refuse a run that cannot fit: in the machine's memory, or on a GPU.

    Hosts of other launchers than `local` are not asked: SLURM's memory is what mem_gb says.

    Raises:
        UserError: naming autoencoder.n_latents and the largest that would fit.
    """
    available = available_bytes or _available_bytes(config)
    if available is not None:
        _check_fits(config, d_model, memory_bytes, available, _where(config))
    if isinstance(config.launcher, LocalLauncherConfig) and planned_device(config) == "cuda":
        _check_fits(config, d_model, _rank_bytes, memory.gpu_bytes(), "on a GPU")


def _available_bytes(config: RunConfig) -> int | None:
    """Of a machine that runs it; None where that is not known here."""
    if isinstance(config.launcher, SlurmLauncherConfig):
        given = config.launcher.mem_gb
        return None if given is None else given * budget.GIB
    return memory.limit_bytes() if isinstance(config.launcher, LocalLauncherConfig) else None


def _where(config: RunConfig) -> str:
    ranks = local_ranks(config)
    return f"for {ranks} processes on one machine" if ranks > 1 else "of memory"


def _rank_bytes(config: RunConfig, d_model: int, *, n_latents: int | None = None) -> int:
    return budget.rank_bytes(cost_shape(config, d_model, n_latents=n_latents))


class _Estimate(Protocol):
    def __call__(self, config: RunConfig, d_model: int, *, n_latents: int | None = None) -> int: ...


def _check_fits(
    config: RunConfig, d_model: int, estimate: _Estimate, available: int, where: str
) -> None:
    needed = estimate(config, d_model)
    if needed <= available:
        return
    fits = _largest_n_latents(config, d_model, estimate, available)
    mesh = config.mesh
    several = mesh.dp * mesh.latent > 1
    if fits:
        remedy = f"Lower autoencoder.n_latents to {fits} or less."
    elif several and "one machine" in where:
        remedy = "Lower mesh.dp or mesh.latent, or use launcher=slurm or launcher=deepspeed."
    else:
        remedy = (
            f"Lower train.batch_tokens={config.train.batch_tokens} or "
            f"evaluation.batch_tokens={config.evaluation.batch_tokens}."
        )
    on_mesh = f" with mesh.dp={mesh.dp} mesh.latent={mesh.latent}" if several else ""
    raise UserError(
        f"autoencoder.n_latents={config.autoencoder.n_latents} at d_model={d_model}{on_mesh} needs "
        f"about {needed / budget.GIB:.1f} GiB {where}, and {available / budget.GIB:.1f} GiB may be "
        f"used. {remedy} python -m scaling.budget says what takes how much."
    )


def _largest_n_latents(config: RunConfig, d_model: int, estimate: _Estimate, available: int) -> int:
    """The most latents that fit, by bisection in steps of one per shard; 0 if not even those do."""
    shards = config.mesh.latent
    low, high = 0, config.autoencoder.n_latents // shards
    while high - low > 1:
        middle = (low + high) // 2
        fits = estimate(config, d_model, n_latents=middle * shards) <= available
        low, high = (middle, high) if fits else (low, middle)
    return low * shards


def _autoencoder(config: RunConfig, d_model: int) -> AutoencoderPlan:
    ae = config.autoencoder
    assert isinstance(ae, TopKConfig)  # the only architecture that conf/autoencoder offers
    return AutoencoderPlan(
        name="topk",
        n_latents=ae.n_latents,
        k=ae.k,
        k_aux=_k_aux(ae, d_model),
        aux_coef=ae.aux_coef,
        dead_after_tokens=ae.dead_after_tokens,
        b_pre_init=str(ae.b_pre_init),
        encoder_init=str(ae.encoder_init),
        scale_encoder=ae.scale_encoder,
    )


def _k_aux(ae: TopKConfig, d_model: int) -> int:
    return budget.power_of_two_near(d_model / 2) if ae.k_aux is None else ae.k_aux


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
    rate = _lr_rule(train).at(n_latents, train.tokens, train.batch_tokens)
    return rate * train.lr_scale


def _lr_rule(train: TrainConfig) -> PowerRule:
    if train.lr_rule is not LrRule.power:
        return RULES[train.lr_rule]
    own = train.lr_power
    assert own.lr is not None  # validated
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
