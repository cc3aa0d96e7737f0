"""What to change where a run does not fit, and why other ways to divide it do not pay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scaling.budget.communication import sent_bytes
from scaling.budget.counts import flops_per_token_sparse, n_params
from scaling.budget.exchange import choose_exchange
from scaling.budget.hardware import Hardware
from scaling.budget.memory import rank_bytes
from scaling.budget.shape import Shape
from scaling.budget.step_time import predict

MICROBATCHES = 8
"""Of a batch in the pipeline that we do not build."""


def smallest_remedy(shape: Shape, memory_bytes: float) -> str | None:
    """The key=value that makes a rank fit for the fewest further ranks; None where none does."""
    fitting = [
        (replaced.world_size, remedy)
        for remedy, replaced in _changes(shape)
        if rank_bytes(replaced) <= memory_bytes
    ]
    more_ranks = sorted(found for found in fitting if found[0] > shape.world_size)
    same_ranks = [remedy for ranks, remedy in fitting if ranks == shape.world_size]
    return next(iter([remedy for _, remedy in more_ranks] + same_ranks), None)


def _changes(shape: Shape) -> Iterator[tuple[str, Shape]]:
    """Ever larger changes: more shards, more replicas, a smaller batch."""
    for factor in _doublings(shape.n_latents // shape.latent):
        latent = shape.latent * factor
        yield f"mesh.latent={latent}", on_mesh(shape, shape.dp, latent)
    for factor in _doublings(shape.local_tokens):
        dp = shape.dp * factor
        yield f"mesh.dp={dp}", on_mesh(shape, dp, shape.latent)
    for factor in _doublings(shape.local_tokens):
        batch = shape.batch_tokens // factor
        yield f"train.batch_tokens={batch}", replace(shape, batch_tokens=batch)


def _doublings(whole: int) -> Iterator[int]:
    """Powers of two, from 2, that divide it."""
    factor = 2
    while whole % factor == 0:
        yield factor
        factor *= 2


def on_mesh(shape: Shape, dp: int, latent: int) -> Shape:
    """The same run on another mesh, with the engine and exchange that launch.py would choose."""
    automatic = "deepspeed" if dp > 1 else "fused"
    engine = "torch" if shape.engine == "torch" else automatic
    return replace(
        shape,
        dp=dp,
        latent=latent,
        engine=engine,
        zero_stage=(shape.zero_stage or 1) if engine == "deepspeed" else 0,
        exchange=choose_exchange(shape.k, shape.n_latents // latent, latent),
    )


def fastest_mesh(shape: Shape, hardware: Hardware) -> Shape | None:
    """Of the meshes with as many ranks, the one with the shortest step that fits."""
    ranks = shape.world_size
    meshes = [
        on_mesh(shape, ranks // latent, latent)
        for latent in range(1, ranks + 1)
        if ranks % latent == 0
        and shape.n_latents % latent == 0
        and shape.batch_tokens % (ranks // latent) == 0
    ]
    fitting = [mesh for mesh in meshes if rank_bytes(mesh) <= hardware.memory_bytes]
    return min(fitting, key=lambda mesh: predict(mesh, hardware).total_s, default=None)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The encoder on one rank, the decoder on another: all the stages there are."""

    busy_share: float
    """Of two ranks' time, with no bubbles: the encoder's product is nearly all the work."""
    bubble_share: float
    """Of the time in which a stage waits for its first or after its last microbatch."""
    state_bytes: int
    """Weights and moments that each of two stages would hold."""


def pipeline(shape: Shape) -> Pipeline:
    """Two stages in place of all shards."""
    n, d, k = shape.n_latents, shape.d_model, shape.k
    second = 6 * k * d  # decoder forward, gradients of decoder and code
    first = flops_per_token_sparse(n, d, k) - second
    return Pipeline(
        busy_share=(first + second) / (2 * max(first, second)),
        bubble_share=1 / (MICROBATCHES + 1),
        state_bytes=3 * n_params(n, d) * shape.value_bytes // 2,
    )


@dataclass(frozen=True, kw_only=True)
class ParameterSharding:
    """FSDP, or ZeRO-3, over as many ranks as the mesh has, against shards of the latents."""

    sent_bytes: float
    """Per rank and step: weights gathered for both passes, gradients reduced and scattered."""
    gathered_bytes: int
    """One matrix as a rank holds it while it multiplies."""
    latent_bytes: float
    """Per rank and step on a mesh of the same ranks, all of them shards."""
    break_even_tokens: float
    """The batch from which parameter sharding would send less."""


def parameter_sharding(shape: Shape) -> ParameterSharding:
    """In numbers for this n, d and batch."""
    ranks = shape.world_size
    weights = n_params(shape.n_latents, shape.d_model) * shape.value_bytes
    sent = 3 * (ranks - 1) / ranks * weights
    sharded = _all_shards(shape)
    latent_bytes = sent_bytes(sharded, "latent")
    per_token = latent_bytes / shape.batch_tokens
    return ParameterSharding(
        sent_bytes=sent,
        gathered_bytes=shape.n_latents * shape.d_model * shape.value_bytes,
        latent_bytes=latent_bytes,
        break_even_tokens=sent / per_token if per_token else float("inf"),
    )


def _all_shards(shape: Shape) -> Shape:
    """The same ranks, each a shard of the latents (where they divide them)."""
    ranks = shape.world_size
    return on_mesh(shape, 1, ranks if shape.n_latents % ranks == 0 else shape.latent)
