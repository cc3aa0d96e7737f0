"""What `python -m scaling.budget` says, as tables for people and as one JSON object."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from scaling.budget.arguments import Asked
from scaling.budget.communication import axis_size, sent_bytes
from scaling.budget.counts import (
    GIB,
    n_params,
)
from scaling.budget.memory import host_bytes, memory_parts, rank_bytes
from scaling.budget.remedies import (
    fastest_mesh,
    parameter_sharding,
    pipeline,
    smallest_remedy,
)
from scaling.budget.sentences import flops_per_rank, selection_shares, sentences
from scaling.budget.shape import Shape
from scaling.budget.step_time import (
    MODEL,
    StepTime,
    auxiliary_flops,
    encoder_flops,
    predict,
    sparse_flops,
)


def as_json(asked: Asked) -> dict[str, Any]:
    """All numbers, in the units of their names."""
    shape, hardware, overlap = asked
    step = predict(shape, hardware, overlap=overlap)
    fits = rank_bytes(shape) <= hardware.memory_bytes
    return {
        "shape": asdict(shape),
        "hardware": asdict(hardware),
        "n_params": n_params(shape.n_latents, shape.d_model),
        "memory_bytes_per_rank": memory_parts(shape),
        "total_memory_bytes_per_rank": rank_bytes(shape),
        "host_memory_bytes_per_rank": host_bytes(shape),
        "fits": fits,
        "remedy": None if fits else smallest_remedy(shape, hardware.memory_bytes),
        "flops_per_step_per_rank": flops_per_rank(shape),
        "communication": [
            {
                **asdict(transfer),
                "sent_bytes": transfer.sent_bytes(axis_size(shape, transfer.axis)),
                "seconds": seconds,
            }
            for transfer, seconds in step.transfer_s
        ],
        "sent_bytes_per_step": {axis: sent_bytes(shape, axis) for axis in ("latent", "dp")},
        "model": MODEL,
        "compute_s": step.compute_s,
        "hidden_s": step.hidden_s,
        "step_s": step.total_s,
        "tokens_per_s": shape.batch_tokens / step.total_s,
        "bottleneck": next(iter(step.by_cause_s)),
        "fastest_mesh": _mesh(asked),
        "selection": selection_shares(shape),
        "pipeline": asdict(pipeline(shape)),
        "parameter_sharding": asdict(parameter_sharding(shape)),
    }


def _mesh(asked: Asked) -> dict[str, int] | None:
    best = fastest_mesh(asked.shape, asked.hardware)
    return None if best is None else {"dp": best.dp, "latent": best.latent}


def print_report(asked: Asked, console: Console) -> None:
    """Tables that fit 80 columns, then what follows from them in words."""
    shape, hardware, overlap = asked
    step = predict(shape, hardware, overlap=overlap)
    console.print(_heading(asked))
    console.print(_memory_table(asked))
    if step.transfer_s:
        console.print(_transfer_table(shape, step))
    console.print(_time_table(shape, step))
    for sentence in sentences(asked, step):
        console.print(sentence)


def _heading(asked: Asked) -> str:
    shape = asked.shape
    state = f"ZeRO-{shape.zero_stage}" if shape.zero_stage else "no ZeRO"
    return (
        f"{shape.n_latents:,} latents x {shape.d_model:,}, k = {shape.k}: "
        f"{n_params(shape.n_latents, shape.d_model):.4g} parameters, "
        f"{shape.batch_tokens:,} tokens a step, {shape.precision}. "
        f"{shape.world_size} x {asked.hardware.name}: {shape.dp} replicas of {shape.latent} "
        f"shards, engine {shape.engine} ({state}), exchange "
        f"{'limited' if shape.capacity_factor else shape.exchange}."
    )


def _memory_table(asked: Asked) -> Table:
    shape, total = asked.shape, rank_bytes(asked.shape)
    table = _table("memory per rank", "GiB", "%")
    for name, size in memory_parts(shape).items():
        table.add_row(name, f"{size / GIB:.3f}", f"{100 * size / total:.1f}")
    table.add_row("all at once", f"{total / GIB:.3f}", "")
    table.add_row("the machine has", f"{asked.hardware.memory_bytes / GIB:.3f}", "")
    return table


def _transfer_table(shape: Shape, step: StepTime) -> Table:
    table = _table("communication per rank and step", "axis", "operation", "MB sent", "ms")
    for transfer, seconds in step.transfer_s:
        times = f" x {transfer.times}" if transfer.times > 1 else ""
        note = f" ({transfer.note})" if transfer.note else ""
        sent = transfer.sent_bytes(axis_size(shape, transfer.axis))
        table.add_row(
            transfer.purpose + note,
            transfer.axis,
            transfer.operation + times,
            f"{sent / 1e6:,.3f}",
            f"{1e3 * seconds:.2f}",
        )
    for axis in ("latent", "dp"):
        seconds = sum(s for t, s in step.transfer_s if t.axis == axis)
        if seconds:
            sent = f"{sent_bytes(shape, axis) / 1e6:,.3f}"
            table.add_row("all", axis, "", sent, f"{1e3 * seconds:.2f}")
    return table


def _time_table(shape: Shape, step: StepTime) -> Table:
    table = _table("a step", "GFLOP per rank", "ms")
    flops = {
        "encoder": encoder_flops(shape),
        "tokens and latents": sparse_flops(shape),
        "AuxK": auxiliary_flops(shape),
    }
    for name, seconds in step.compute_s.items():
        work = f"{flops[name] / 1e9:,.1f}" if name in flops else ""
        table.add_row(name, work, f"{1e3 * seconds:.2f}")
    if step.transfer_s:
        exchanged_s = sum(seconds for _, seconds in step.transfer_s)
        table.add_row("communication", "", f"{1e3 * exchanged_s:.2f}")
    if step.hidden_s:
        table.add_row("hidden behind the backward pass", "", f"-{1e3 * step.hidden_s:.2f}")
    table.add_row("all", "", f"{1e3 * step.total_s:.2f}")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for number, name in enumerate(columns):
        words = name in ("axis", "operation")
        table.add_column(name, justify="left" if number == 0 or words else "right")
    return table
