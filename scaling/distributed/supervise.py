"""The runner of a run of several processes: starts its ranks, watches them, tries again.

It holds the run's lease and trains nothing. A try that leaves no outcome has one cause, which is
found among its failures; where a process died or hung, the run goes on from its newest checkpoint,
`launcher.retries` times.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.distributed.blame import Cause, root_cause
from scaling.distributed.elastic import ElasticGroup, Nodes, this_node
from scaling.distributed.ranks import DEFAULT_BODY, LEASE_LOST, Ended, RankGroup
from scaling.malloc import KEEP_PAGES
from scaling.plan import RunPlan
from scaling.runs.record import RunOutcome, Status
from scaling.runs.store import RunFolder
from scaling.storage.lease import LeaseLost, Witness

Report = Callable[[dict[str, Any]], None]
POLL_S = 0.1
_REPORT_EVERY_S = 0.25
_TAIL_BYTES = 1 << 16


def supervise(
    folder: RunFolder, lease: Witness, report: Report, stop: Callable[[], bool]
) -> RunOutcome:
    """Carry the run in `folder` out by ranks on this machine: a `scaling.take_up.Runner`.

    Raises:
        LeaseLost: another process has taken the run over.
    """
    plan = RunPlan.from_json(folder.read_plan())
    nodes = this_node()
    ranks = partial(local_ranks, plan, folder, lease.token, nodes)
    return Supervisor(folder, lease, report, stop, ranks).carry_out()


def local_ranks(
    plan: RunPlan, folder: RunFolder, token: int, nodes: Nodes, *, body: str = DEFAULT_BODY
) -> RankGroup:
    """This node's ranks of a run, not started yet."""
    # Inherited by the ranks, and read when they begin: too late to be set by them.
    os.environ.update(KEEP_PAGES | {"OMP_NUM_THREADS": str(plan.execution.threads)})
    return ElasticGroup(nodes, plan.mesh.world_size, rank_arguments(folder, token, body=body))


def rank_arguments(folder: RunFolder, token: int, *, body: str = DEFAULT_BODY) -> list[str]:
    """Of `python -m scaling.distributed.rank`, but for --attempt."""
    return ["--run", str(folder.path.absolute()), "--token", str(token), "--body", body]


class Supervisor:
    """`group` makes the ranks of one try, however they are started."""

    def __init__(
        self,
        folder: RunFolder,
        lease: Witness,
        report: Report,
        stop: Callable[[], bool],
        group: Callable[[], RankGroup],
    ) -> None:
        self._folder, self._lease, self._stop, self._group = folder, lease, stop, group
        self._plan = RunPlan.from_json(folder.read_plan())
        self._tail = MetricsTail(folder.metrics_path, report)

    def carry_out(self) -> RunOutcome:
        tries = 0
        while True:
            tries += 1
            attempt = AttemptFolder.make(self._folder, self._lease.token, tries)
            ended = self._see_through(attempt)
            outcome = attempt.read_outcome()
            if outcome is not None:
                return self._counted(outcome, tries)
            if LEASE_LOST in ended.exits.values():
                raise LeaseLost(f"{self._folder.path} was taken over by another process")
            if self._stop():  # whoever wished it may have told the ranks, too, who then just die
                return self._counted(self._known(Status.preempted), tries)
            cause = root_cause(attempt, ended)
            if not cause.may_pass or tries > self._plan.retries:
                return self._counted(self._failed(cause, tries), tries)
            print(f"try {tries}: {cause.error.message}; going on from the newest checkpoint")

    def _see_through(self, attempt: AttemptFolder) -> Ended:
        """One try, from its start to the end of its last process."""
        group, ended = self._group(), None
        try:
            group.start(attempt)
            while (ended := group.poll()) is None:
                self._lease.check()
                if self._stop():
                    attempt.wish_to_stop()
                self._tail.look()
                time.sleep(POLL_S)
            self._tail.look(at_once=True)
            return ended
        finally:
            if ended is None or not ended.is_clean:
                attempt.abort("its supervisor has ended it")
            group.stop()

    def _known(self, status: Status) -> RunOutcome:
        """An outcome that says no more than the record did."""
        record = self._folder.read_record()
        return RunOutcome(status, record.result, record.cost, record.warnings)

    def _failed(self, cause: Cause, tries: int) -> RunOutcome:
        error = cause.error
        if tries > 1:
            error = replace(error, message=f"{error.message} (the last of {tries} tries)")
        return replace(self._known(Status.failed), error=error)

    def _counted(self, outcome: RunOutcome, tries: int) -> RunOutcome:
        """The worker has counted the first try."""
        before = self._folder.read_record().cost.get("attempts", 1)
        return replace(outcome, cost={**outcome.cost, "attempts": before + tries - 1})


class MetricsTail:
    """Reports the last row of a growing metrics.jsonl when it is a new one."""

    def __init__(self, path: Path, report: Report) -> None:
        self._path, self._report = path, report
        self._looked_at_s = float("-inf")
        self._last = self._last_row()

    def look(self, *, at_once: bool = False) -> None:
        if not at_once and time.monotonic() - self._looked_at_s < _REPORT_EVERY_S:
            return
        self._looked_at_s = time.monotonic()
        row = self._last_row()
        if row is not None and row != self._last:
            self._last = row
            self._report(row)

    def _last_row(self) -> dict[str, Any] | None:
        with suppress(FileNotFoundError, ValueError), self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            whole = file.read().split(b"\n")[:-1]  # what follows the last newline is half a row
            return json.loads(whole[-1]) if whole else None
        return None
