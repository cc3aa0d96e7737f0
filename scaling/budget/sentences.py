"""What follows from the tables, in words: one sentence or two on each point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from scaling.budget.arguments import Asked
from scaling.budget.counts import GIB, flops_per_token_dense, flops_per_token_sparse
from scaling.budget.exchange import redone_share, truncated_share
from scaling.budget.memory import memory_parts, rank_bytes
from scaling.budget.remedies import (
    MICROBATCHES,
    fastest_mesh,
    parameter_sharding,
    pipeline,
    smallest_remedy,
)
from scaling.budget.shape import Shape
from scaling.budget.step_time import MODEL, StepTime, predict


def sentences(asked: Asked, step: StepTime) -> Iterator[str]:
    yield _speed(asked.shape, step)
    yield _flops_sentence(asked.shape)
    yield from _selection_sentence(asked.shape)
    yield _fit(asked)
    yield from _precision_hint(asked, step)
    if asked.shape.world_size > 1:
        yield from _mesh_hint(asked, step)
        yield _pipeline_sentence(asked)
        yield _parameter_sentence(asked)


def _speed(shape: Shape, step: StepTime) -> str:
    cause, seconds = next(iter(step.by_cause_s.items()))
    return (
        f"Predicted ({MODEL}): {1e3 * step.total_s:.4g} ms a step, "
        f"{shape.batch_tokens / step.total_s:,.0f} tokens/s. Bottleneck: {cause}, "
        f"{100 * seconds / step.total_s:.0f}% of the step."
    )


def _flops_sentence(shape: Shape) -> str:
    flops = flops_per_rank(shape)
    return (
        f"FLOPs per step and rank: {flops['flops_sparse']:.4g} (convention sparse: 2nd + 8kd a "
        f"token), {flops['flops_dense']:.4g} (dense: 12nd)."
    )


def _selection_sentence(shape: Shape) -> Iterator[str]:
    shares = selection_shares(shape)
    if "truncated_share" in shares:
        yield (
            f"mesh.capacity_factor={shape.capacity_factor:g} lets each shard offer "
            f"{shares['width']:.0f} latents per token: {100 * shares['truncated_share']:.3g}% of "
            f"the tokens lose at least one of their {shape.k}, where they fall evenly."
        )
    if "redone_share" in shares:
        yield (
            f"Each shard offers {shares['width']:.0f} latents per token; "
            f"{100 * shares['redone_share']:.2g}% of the tokens are looked at twice, where the "
            f"{shape.k} fall evenly. The selection is exact in any case."
        )


def _fit(asked: Asked) -> str:
    shape, hardware = asked.shape, asked.hardware
    needed, has = rank_bytes(shape), hardware.memory_bytes
    if needed <= has:
        return f"It fits: {needed / GIB:.1f} of {has / GIB:.1f} GiB per rank."
    parts = sorted(memory_parts(shape).items(), key=lambda part: -part[1])[:3]
    largest = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
    remedy = smallest_remedy(shape, has)
    change = (
        f"The smallest change that would: {remedy}."
        if remedy
        else "No single change of the mesh or the batch would: lower autoencoder.n_latents."
    )
    return (
        f"It does not fit: {needed / GIB:.1f} GiB per rank of {has / GIB:.1f} "
        f"(largest: {largest}). {change}"
    )


def _precision_hint(asked: Asked, step: StepTime) -> Iterator[str]:
    if asked.shape.device == "cuda" and asked.shape.precision == "float32":
        low = replace(asked.shape, precision="bf16")
        low_s = predict(low, asked.hardware, overlap=asked.overlap).total_s
        yield (
            f"float32 operands run on the ordinary cores. numerics.precision=bf16: "
            f"{1e3 * low_s:.4g} ms in place of {1e3 * step.total_s:.4g}."
        )


def _mesh_hint(asked: Asked, step: StepTime) -> Iterator[str]:
    shape = asked.shape
    best = fastest_mesh(shape, asked.hardware)
    if best is not None and (best.dp, best.latent) != (shape.dp, shape.latent):
        best_s = predict(best, asked.hardware, overlap=asked.overlap).total_s
        if best_s < step.total_s:
            yield (
                f"Of the meshes with {shape.world_size} ranks that fit, mesh.dp={best.dp} "
                f"mesh.latent={best.latent} has the shortest step: {1e3 * best_s:.4g} ms."
            )


def _pipeline_sentence(asked: Asked) -> str:
    found, has = pipeline(asked.shape), asked.hardware.memory_bytes
    room = (
        f" Weights and moments would be {found.state_bytes / GIB:,.0f} GiB per stage, of "
        f"{has / GIB:.0f}, and there is no third stage."
        if found.state_bytes > has
        else ""
    )
    return (
        "Why no pipeline: there are two layers, so two stages; the encoder's product is nearly all "
        f"the work, so two ranks would be busy {100 * found.busy_share:.1f}% of the time before "
        f"bubbles, which with {MICROBATCHES} microbatches take another "
        f"{100 * found.bubble_share:.0f}%.{room}"
    )


def _parameter_sentence(asked: Asked) -> str:
    found = parameter_sharding(asked.shape)
    has = asked.hardware.memory_bytes
    room = (
        f" One gathered matrix alone is {found.gathered_bytes / GIB:,.0f} GiB, of {has / GIB:.0f}."
        if found.gathered_bytes > has
        else ""
    )
    return (
        "Why no parameter sharding (FSDP, ZeRO-3): per rank and step it would send "
        f"{found.sent_bytes / 1e9:,.4g} GB (weights gathered twice, gradients scattered); the same "
        f"{asked.shape.world_size} ranks as shards of the latents send "
        f"{found.latent_bytes / 1e9:,.4g} GB. It would pay from "
        f"{found.break_even_tokens:,.0f} tokens a step.{room}"
    )


def flops_per_rank(shape: Shape) -> dict[str, float]:
    """A rank's share of the step under the conventions that every record carries."""
    per_rank = shape.batch_tokens / shape.world_size
    n, d = shape.n_latents, shape.d_model
    return {
        "flops_dense": per_rank * flops_per_token_dense(n, d),
        "flops_sparse": per_rank * flops_per_token_sparse(n, d, shape.k),
    }


def selection_shares(shape: Shape) -> dict[str, float]:
    if shape.latent == 1:
        return {}
    k, n_local, shards = shape.k, shape.n_local, shape.latent
    width = float(shape.offered(k, n_local))
    if shape.capacity_factor is not None:
        lost = truncated_share(k, n_local, shards, shape.capacity_factor)
        return {"width": width, "truncated_share": lost}
    if shape.exchange == "candidates":
        return {"width": width, "redone_share": redone_share(k, n_local, shards)}
    return {"width": width}
