"""Which runs of a sweep one process trains by turns: by their feed, by memory, by workers.

As many groups as there are workers, so that none is idle, of about the same work; more where memory
wants it. Where the activations come from a live model, as few as memory allows instead: each
process would have a model of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch

from scaling import budget, memory
from scaling.feed import Feed, feed_of
from scaling.plan import RunPlan
from scaling.sweep.footprint import plan_shape
from scaling.sweep.groups import Group, Grouping, Plan, each_alone
from scaling.sweep.progress import duration_of


def grouping_for(plans: Sequence[RunPlan], workers: int) -> Grouping:
    """As `launcher.multiplex` of these plans says, for the memory that is available now."""
    if not plans or not plans[0].config["launcher"].get("multiplex"):
        return each_alone
    return Packing.here(plans, workers).groups


def together_bytes(plans: Sequence[RunPlan]) -> int:
    """Estimated peak memory of a process that trains these (its GPU's not included)."""
    return budget.together_host_bytes([plan_shape(plan) for plan in plans]) + _of_source(plans)


def _of_source(plans: Sequence[RunPlan]) -> int:
    """What plans have beyond their shapes', as a subject model: shared, so counted once."""
    return max(
        0, *(plan.estimated_memory_bytes - budget.host_bytes(plan_shape(plan)) for plan in plans)
    )


@dataclass(frozen=True)
class Packing:
    workers: int
    memory_bytes: int
    """For all processes."""
    gpu_bytes: int | None
    """For the runs of one worker; None = they compute on CPU."""

    @classmethod
    def here(cls, plans: Sequence[RunPlan], workers: int) -> Packing:
        gpu_bytes = None
        if plans[0].execution.device == "cuda" and torch.cuda.is_available():
            sharing = -(-workers // torch.cuda.device_count())  # workers on one GPU
            gpu_bytes = memory.gpu_bytes() // sharing
        return cls(workers, psutil.virtual_memory().available, gpu_bytes)

    def groups(self, plans: Sequence[Plan]) -> list[Group]:
        """A `scaling.sweep.groups.Grouping`, of plans that are `RunPlan`."""
        feeds: dict[Feed | int, list[RunPlan]] = {}
        for plan in plans:
            assert isinstance(plan, RunPlan)
            feeds.setdefault(feed_of(plan) or id(plan), []).append(plan)
        return [group for alike in feeds.values() for group in self._of_one_feed(alike)]

    def _of_one_feed(self, plans: Sequence[RunPlan]) -> list[Group]:
        live = bool(plans[0].config["activations"].get("stream"))
        limit = self.memory_bytes if live else self.memory_bytes // self.workers
        parts = packed(plans, 1 if live else self.workers, lambda part: self._fits(part, limit))
        return [Group(tuple(part), together_bytes(part)) for part in parts]

    def _fits(self, plans: Sequence[RunPlan], limit: int) -> bool:
        if together_bytes(plans) > limit:
            return False
        if self.gpu_bytes is None:
            return True
        shapes = [plan_shape(plan) for plan in plans]
        return budget.together_bytes(shapes) + _of_source(plans) <= self.gpu_bytes


def packed(
    plans: Sequence[RunPlan], n_parts: int, fits: Callable[[Sequence[RunPlan]], bool]
) -> list[list[RunPlan]]:
    """Into `n_parts` parts, or fewer runs, or more parts where they would not fit otherwise.

    The longest first, each to the part with the least to do that has room for it. What does not
    fit even alone has a part of its own: it is refused, or waits, elsewhere.
    """
    parts: list[list[RunPlan]] = [[] for _ in range(min(n_parts, len(plans)))]
    for plan in sorted(plans, key=duration_of, reverse=True):
        by_load = sorted(parts, key=lambda part: sum(map(duration_of, part)))
        room = next((part for part in by_load if not part or fits([*part, plan])), None)
        if room is None:
            parts.append(room := [])
        room.append(plan)
    return parts
