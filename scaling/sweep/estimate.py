"""How long runs will take, from a few timed steps of the real engine on random vectors."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import psutil
import torch

from scaling.autoencoder.init import initial_weights
from scaling.autoencoder_plan import AutoencoderPlan
from scaling.plan import RunPlan
from scaling.train.build import DTYPES, ENGINES, build_model, optimizer_spec
from scaling.train.engine import Engine
from scaling.train.mesh import ALONE
from scaling.train.torch_engine import TorchEngine

TIMED_STEPS = 3
OVERHEAD_S = 1.5
"""Opening the source, initialization, evaluation and writing, for a small run."""
MAX_CALIBRATION_FLOPS = 2e11
"""Batches whose timed steps would cost more are timed in part."""

Shape = tuple[int, int, int, int]
"""n_latents, k, batch_tokens, d_model, of one rank."""
Kind = tuple[str, str]
"""Architecture and engine: runs of one kind are timed together."""


def with_estimates(plans: Sequence[RunPlan]) -> list[RunPlan]:
    """The plans, each with `estimated_s` from a short calibration on this machine.

    The smallest and the largest k of each n are timed, and other k lie between them.
    No latent is dead in these steps: AuxK can nearly double a step where 40% are.
    Evaluation is not in it either, nor what ranks exchange: an estimate, not a promise. None of
    them has one where some cannot be timed here.
    """
    if not all(_can_be_timed(plan) for plan in plans):
        return list(plans)
    groups: dict[Kind, list[RunPlan]] = {}
    for plan in plans:
        groups.setdefault(_kind(plan), []).append(plan)
    times_s = {kind: _timed_shapes(group) for kind, group in groups.items()}
    return [
        plan.with_estimate(OVERHEAD_S + _training_s(plan, times_s[_kind(plan)])) for plan in plans
    ]


def _kind(plan: RunPlan) -> Kind:
    return plan.autoencoder.name, plan.execution.engine


def _timed_shapes(plans: Sequence[RunPlan]) -> dict[Shape, float]:
    """Seconds per step of the smallest and the largest shape of each n."""
    shapes = sorted({_shape(plan) for plan in plans})
    return {shape: _step_s(_example(plans, shape)) for shape in _ends(shapes)}


def _training_s(plan: RunPlan, times_s: dict[Shape, float]) -> float:
    return plan.train.steps * _crowding(plan) * _between(_shape(plan), times_s)


class Task(Protocol):
    """A run, or a group of runs that one process trains by turns."""

    @property
    def estimated_s(self) -> float | None: ...
    @property
    def world_size(self) -> int: ...


def makespan_s(tasks: Iterable[Task], workers: int, slots: int | None = None) -> float:
    """Wall seconds for the tasks, longest first, each when a worker and its slots are free.

    A task takes a slot for each of its processes, `slots` of them at the most (by default as many
    as there are workers).
    """
    n_slots = slots or workers
    now_s, free, running = 0.0, n_slots, []
    waiting = sorted(tasks, key=lambda task: task.estimated_s or 0.0, reverse=True)
    while waiting:
        wanted = [min(task.world_size, n_slots) for task in waiting]
        starts = next((i for i, n in enumerate(wanted) if n <= free), None)
        if starts is not None and len(running) < workers:
            free -= wanted[starts]
            ends_s = now_s + (waiting.pop(starts).estimated_s or 0.0)
            heapq.heappush(running, (ends_s, wanted[starts]))
        else:
            now_s, given_back = heapq.heappop(running)
            free += given_back
    return max((ends_s for ends_s, _ in running), default=now_s)


def _shape(plan: RunPlan) -> Shape:
    mesh, ae = plan.mesh, plan.autoencoder
    n_local, part_tokens = ae.n_latents // mesh.latent, plan.train.batch_tokens // mesh.dp
    return n_local, min(ae.widest_code, n_local), part_tokens, plan.source.d_model


def _can_be_timed(plan: RunPlan) -> bool:
    """Whether this machine, from which runs may be launched onto others, could hold a rank."""
    if plan.execution.device == "cuda":
        return torch.cuda.is_available()
    rank_bytes = plan.estimated_memory_bytes / plan.world_size
    return rank_bytes < psutil.virtual_memory().available


def _crowding(plan: RunPlan) -> float:
    """How many ranks share a core, where there are more ranks than cores."""
    if plan.execution.device == "cuda":
        return 1.0
    cores = len(psutil.Process().cpu_affinity())
    return max(1.0, plan.mesh.world_size * plan.execution.threads / cores)


def _example(plans: Sequence[RunPlan], shape: Shape) -> RunPlan:
    return next(plan for plan in plans if _shape(plan) == shape)


def _ends(shapes: Sequence[Shape]) -> list[Shape]:
    """Of each (n, batch, d), the shapes with the smallest and the largest k."""
    groups: dict[tuple[int, int, int], list[Shape]] = {}
    for shape in shapes:
        groups.setdefault((shape[0], *shape[2:]), []).append(shape)
    return [end for group in groups.values() for end in {min(group), max(group)}]


def _between(shape: Shape, times_s: dict[Shape, float]) -> float:
    """Seconds per step at `shape`, linear in k between the timed ends."""
    n, k, *rest = shape
    ends = sorted((s[1], t) for s, t in times_s.items() if (s[0], *s[2:]) == (n, *rest))
    (low_k, low_s), (high_k, high_s) = ends[0], ends[-1]
    share = 0.0 if high_k == low_k else (k - low_k) / (high_k - low_k)
    return low_s + share * (high_s - low_s)


def _step_s(plan: RunPlan) -> float:
    """Seconds per training step.

    A batch too large to time is timed at two smaller sizes: a step costs a part that is fixed (the
    optimizer's passes over the weights) and one that is linear in its tokens.
    """
    n, _, batch_tokens, d_model = _shape(plan)
    torch.set_num_threads(plan.execution.threads)
    engine = _random_engine(plan)
    affordable = int(MAX_CALIBRATION_FLOPS / (12 * n * d_model * (TIMED_STEPS + 1)))
    if batch_tokens <= affordable:
        return _median_step_s(engine, plan, batch_tokens)
    large = max(128, affordable)
    small_s, large_s = (_median_step_s(engine, plan, size) for size in (large // 2, large))
    per_token_s = max(0.0, large_s - small_s) / (large - large // 2)
    return large_s + per_token_s * (batch_tokens - large)


def _median_step_s(engine: Engine, plan: RunPlan, batch_tokens: int) -> float:
    """Of a few steps, after one to warm up."""
    batch_BD = torch.randn(batch_tokens, plan.source.d_model, device=plan.execution.device)
    batch_BD = batch_BD.to(DTYPES[plan.numerics.precision])
    times_s = [_timed(engine, batch_BD) for _ in range(TIMED_STEPS + 1)][1:]
    return sorted(times_s)[len(times_s) // 2]


def _random_engine(plan: RunPlan) -> Engine:
    """An engine of one rank's share, which it trains as if it were all."""
    n_local, k, _, d_model = _shape(plan)
    k = None if plan.autoencoder.k is None else k
    plan = replace(plan, autoencoder=_share(plan.autoencoder, n_local, k))
    weights = initial_weights(
        n_local,
        torch.zeros(d_model),
        tied=True,
        seed=0,
        dtype=DTYPES[plan.numerics.precision],
    )
    model = build_model(plan, weights, mean_predictor_mse=1.0)
    engine = ENGINES.get(plan.execution.engine, TorchEngine)
    return engine(model, optimizer_spec(plan), 2**62, ALONE)


def _share(ae: AutoencoderPlan, n_local: int, k: int | None) -> AutoencoderPlan:
    """An autoencoder as large as a rank's share of this one."""
    options = dict(ae.options)
    if "wide_k" in options:
        options["wide_k"] = min(options["wide_k"], n_local)
    if "prefixes" in options:
        options["prefixes"] = sorted({-(-m * n_local // ae.n_latents) for m in options["prefixes"]})
    return replace(ae, n_latents=n_local, k=k, options=options)


def _timed(engine: Engine, batch_BD: torch.Tensor) -> float:
    started_s = time.perf_counter()
    _ = float(engine.step(batch_BD, 1e-4).loss)
    return time.perf_counter() - started_s
