"""Runs of one worker that are trained by turns, each batch read once for all that want it.

Each is taken up as it would be alone: with its own lease, record, checkpoints and failures. What
they share is the source of their activations, and this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from scaling.errors import UserError
from scaling.feed import feed_of
from scaling.plan import RunPlan
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease
from scaling.take_up import Parent, Report, Runner, Steps, take_up, taking_up
from scaling.train.course import together


class Company(Protocol):
    """Several runs of one feed (`scaling.feed`)."""

    def begin(
        self, folder: RunFolder, lease: Lease, report: Report, stop: Callable[[], bool]
    ) -> Steps:
        """A `scaling.take_up.Begin`."""
        ...

    def batch(self, step: int) -> Any:
        """What all that ask for this step are sent."""
        ...


@dataclass(frozen=True)
class Runners:
    """What a worker trains with."""

    run: Runner
    """One run."""
    together: Callable[[RunFolder], Company] | None
    """Several, of which the folder is any. None: they are trained one after the other."""


def take_up_all(
    folders: Sequence[RunFolder], command: dict[str, Any], runners: Runners, channel: Parent
) -> None:
    """Take up every run, and tell of each as it ends; stops between feeds where that is wished."""
    for group in _by_feed(folders) if runners.together else [[folder] for folder in folders]:
        if channel.stop.is_set():
            return
        if len(group) == 1 or runners.together is None:
            event = take_up(group[0], command, runners.run, channel)
            channel.send(run_id=group[0].run_id, **event)
        else:
            _take_up_together(group, command, runners.together(group[0]), channel)


def _take_up_together(
    folders: Sequence[RunFolder], command: dict[str, Any], company: Company, channel: Parent
) -> None:
    courses = {
        folder.run_id: taking_up(folder, command, company.begin, channel) for folder in folders
    }
    together(courses, company.batch, lambda run_id, event: channel.send(run_id=run_id, **event))


def _by_feed(folders: Sequence[RunFolder]) -> list[list[RunFolder]]:
    """By the plans as they lie there: an earlier launch may have settled some of it otherwise.

    A plan that cannot be read makes a group of its own, to fail by itself.
    """
    groups: dict[object, list[RunFolder]] = {}
    for folder in folders:
        key: object = folder.run_id
        with suppress(UserError, OSError, LookupError, AttributeError, TypeError, ValueError):
            key = feed_of(RunPlan.from_json(folder.read_plan())) or key
        groups.setdefault(key, []).append(folder)
    return list(groups.values())
