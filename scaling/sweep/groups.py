"""What a worker is given in one command: one run, or several that it trains by turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scaling.sweep.progress import Job, duration_of


class Plan(Job, Protocol):
    """What scheduling needs to know of a run; `scaling.plan.RunPlan` is one."""

    @property
    def estimated_memory_bytes(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Group:
    plans: tuple[Plan, ...]
    """At least one; several are of one process each."""
    memory_bytes: int
    """Of all of them together, at most."""

    @classmethod
    def of_one(cls, plan: Plan) -> Group:
        return cls((plan,), plan.estimated_memory_bytes)

    @property
    def name(self) -> str:
        """A run is in one group at a time."""
        return self.plans[0].run_id

    @property
    def run_ids(self) -> list[str]:
        return [plan.run_id for plan in self.plans]

    @property
    def world_size(self) -> int:
        """Processes."""
        return max(plan.world_size for plan in self.plans)

    @property
    def estimated_s(self) -> float | None:
        """All one after the other, as by turns: None where that of one is not known."""
        known = [plan.estimated_s for plan in self.plans if plan.estimated_s is not None]
        return sum(known) if len(known) == len(self.plans) else None

    @property
    def duration(self) -> float:
        """To put them in order: seconds, or tokens where those are not known."""
        return sum(duration_of(plan) for plan in self.plans)

    def part(self, run_ids: Collection[str]) -> list[Group]:
        """The group of only these, if any. Several count for the memory of all."""
        plans = tuple(plan for plan in self.plans if plan.run_id in run_ids)
        if len(plans) == 1:
            return [Group.of_one(plans[0])]
        return [Group(plans, self.memory_bytes)] if plans else []

    def halves(self) -> list[Group]:
        """Itself where there is nothing to halve."""
        middle = (len(self.plans) + 1) // 2
        return self.part(self.run_ids[:middle]) + self.part(self.run_ids[middle:])


@dataclass
class Hand:
    """What a worker was given, until all of it has ended."""

    group: Group
    returned: list[str] = field(default_factory=list)
    """To be given out again once the worker is through."""
    retires: bool = False
    """The worker takes nothing after it."""


Grouping = Callable[[Sequence[Plan]], list[Group]]
"""How runs go to workers; every run is in one of the groups."""


def each_alone(plans: Sequence[Plan]) -> list[Group]:
    return [Group.of_one(plan) for plan in plans]
