"""A crew spread over several nodes that see one work folder: a leader and its helpers.

The leader publishes the parts to make in WORK/round.json. Of N nodes, node i makes parts i, i + N,
i + 2 N, ...; a part's bytes depend on its number and the recipe alone, so it does not matter who
makes it, nor whether two do. A helper shows life by a lease on WORK/helpers/i. What a helper that
is not there leaves undone, the leader makes itself: helpers only ever save time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaling.activations.crew import Crew, Job, OnTokens
from scaling.activations.parts import Part
from scaling.errors import UserError
from scaling.storage.atomic import read_json, write_json
from scaling.storage.lease import Lease, holder

ROUND = "round.json"
HELPERS = "helpers"
HELPER_TIMEOUT_S = 60.0
POLL_S = 0.5
HELPER_APPEARS_WITHIN_S = 20.0
"""Nodes of one job start together, but not all import equally fast."""

CrewMaker = Callable[[Job, int], AbstractContextManager[Crew]]
"""(job, number of parts) -> the crew of this node."""


class SharedCrew:
    """The leader's: makes its own share with the crew of its node, and sees to the rest."""

    def __init__(
        self, job: Job, nodes: int, tokens_of: Callable[[Part], int], make: CrewMaker
    ) -> None:
        self._job, self._nodes, self._tokens_of, self._make = job, nodes, tokens_of, make

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        (self._job.work / ROUND).unlink(missing_ok=True)

    def harvest(self, parts: Iterable[Part], on_tokens: OnTokens) -> None:
        todo = list(parts)
        content = {"job": self._job.to_json(), "nodes": self._nodes, "parts": _rows(todo)}
        write_json(self._job.work / ROUND, content)
        own = share(todo, 0, self._nodes)
        others = {node: share(todo, node, self._nodes) for node in range(1, self._nodes)}
        counted = _Counted(
            self._job, [p for rest in others.values() for p in rest], self._tokens_of
        )

        def count(tokens: int) -> None:
            on_tokens(tokens + counted.new_tokens())

        with self._make(self._job, len(own)) as crew:
            crew.harvest(own, count)
            self._wait_for(others, count)
            if left := counted.missing():
                crew.harvest(left, lambda _tokens: count(0))
        count(0)

    def _wait_for(self, others: dict[int, list[Part]], count: OnTokens) -> None:
        """Until each helper is through with its share, or is not there."""
        appears_until = time.monotonic() + HELPER_APPEARS_WITHIN_S
        while True:
            late = [node for node, parts in others.items() if not _all_done(self._job, parts)]
            here = [node for node in late if self._is_here(node)]
            if not late or (not here and time.monotonic() > appears_until):
                return
            count(0)
            time.sleep(POLL_S)

    def _is_here(self, node: int) -> bool:
        folder = self._job.work / HELPERS / str(node)
        return holder(folder, timeout_s=HELPER_TIMEOUT_S) is not None


class _Counted:
    """Tells the tokens of other nodes' parts once each, when they have appeared."""

    def __init__(self, job: Job, parts: Sequence[Part], tokens_of: Callable[[Part], int]) -> None:
        self._job, self._tokens_of = job, tokens_of
        self._uncounted = list(parts)
        self._looked_at_s = float("-inf")

    def new_tokens(self) -> int:
        if time.monotonic() - self._looked_at_s < POLL_S and self._uncounted:
            return 0
        self._looked_at_s = time.monotonic()
        done = [part for part in self._uncounted if _all_done(self._job, [part])]
        self._uncounted = [part for part in self._uncounted if part not in done]
        return sum(self._tokens_of(part) for part in done)

    def missing(self) -> list[Part]:
        return [part for part in self._uncounted if not _all_done(self._job, [part])]


def help_harvest(work: Path, node: int, make: CrewMaker, is_over: Callable[[], bool]) -> None:
    """Make node `node`'s share of each round, until `is_over`."""
    (work / HELPERS / str(node)).mkdir(parents=True, exist_ok=True)
    lease = Lease.acquire(work / HELPERS / str(node), timeout_s=HELPER_TIMEOUT_S)
    if lease is None:
        raise UserError(f"another process helps as node {node} in {work} already")
    with lease:
        while not is_over():
            job, parts = _published(work, node)
            if job is None or not parts:
                time.sleep(POLL_S)
                continue
            with make(job, len(parts)) as crew:
                crew.harvest(parts, lambda _tokens: None)
            print(f"made {len(parts)} parts as node {node}", flush=True)


def share(parts: Sequence[Part], node: int, nodes: int) -> list[Part]:
    return list(parts[node::nodes])


def _published(work: Path, node: int) -> tuple[Job | None, list[Part]]:
    """The round now and what is left of the node's share of it."""
    with suppress(FileNotFoundError, UserError):
        content: dict[str, Any] = read_json(work / ROUND)
        job = Job.from_json(content["job"])
        parts = [Part(**row) for row in content["parts"]]
        mine = share(parts, node, content["nodes"])
        return job, [part for part in mine if not _all_done(job, [part])]
    return None, []


def _all_done(job: Job, parts: Sequence[Part]) -> bool:
    return all(part.is_done(job.work, job.layers) for part in parts)


def _rows(parts: Sequence[Part]) -> list[dict[str, Any]]:
    return [asdict(part) for part in parts]
