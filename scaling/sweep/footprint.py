"""What a run's cost depends on, and whether it fits: in the machine's memory, or on a GPU."""

from __future__ import annotations

from typing import Protocol

from scaling import budget, memory
from scaling.autoencoder_config import k_of
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.launcher_config import LocalLauncherConfig, SlurmLauncherConfig
from scaling.plan import RunPlan
from scaling.sweep.architectures import k_aux_of
from scaling.sweep.execution import planned_device, planned_engine, planned_exchange


def cost_shape(config: RunConfig, d_model: int, *, n_latents: int | None = None) -> budget.Shape:
    """What the run's cost depends on (with another n_latents, if given).

    The batch counted is the larger of a training step's and an evaluation's, which is not divided
    among replicas.
    """
    ae, mesh, train = config.autoencoder, config.mesh, config.train
    engine, device = planned_engine(config), planned_device(config)
    k, k_aux = k_of(ae), k_aux_of(ae, d_model)
    return budget.Shape(
        n_latents=n_latents or ae.n_latents,
        d_model=d_model,
        k=k or 0,
        batch_tokens=max(train.batch_tokens, config.evaluation.batch_tokens * mesh.dp),
        k_aux=k_aux if getattr(ae, "aux_coef", 0) else 0,
        dense=k is None,
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
        k=ae.k or 0,
        batch_tokens=max(train.batch_tokens, plan.observe.eval_batch_tokens * plan.mesh.dp),
        k_aux=ae.k_aux if ae.aux_coef else 0,
        dense=ae.k is None,
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


def check_memory(
    config: RunConfig, d_model: int, available_bytes: int | None = None, *, source_bytes: int = 0
) -> None:
    """Refuse a run that cannot fit: in the machine's memory, or on a GPU.

    Hosts of other launchers than `local` are not asked: SLURM's memory is what mem_gb says. A live
    stream takes `source_bytes` of each process, wherever it computes, before any latent has room.

    Raises:
        UserError: naming autoencoder.n_latents and the largest that would fit.
    """
    available = available_bytes or _available_bytes(config)
    if available is not None:
        room = _beside_source(available, local_ranks(config) * source_bytes)
        _check_fits(config, d_model, memory_bytes, room, _where(config))
    if isinstance(config.launcher, LocalLauncherConfig) and planned_device(config) == "cuda":
        room = _beside_source(memory.gpu_bytes(), source_bytes)
        _check_fits(config, d_model, _rank_bytes, room, "on a GPU")


def _beside_source(available: int, source_bytes: int) -> int:
    if source_bytes >= available:
        raise UserError(
            f"activations.stream=true holds the subject model and its blocks in about "
            f"{source_bytes / budget.GIB:.1f} GiB, and {available / budget.GIB:.1f} GiB may be "
            "used. Lower activations.buffer_tokens, or store the vectors "
            "(activations.stream=false)."
        )
    return available - source_bytes


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
