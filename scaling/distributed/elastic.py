"""The ranks of a run on this machine, started and watched by torch's elastic agent.

The agent runs in a thread: its signal handlers stay out of the worker's way. It ends all its ranks
when one fails; this module sees to it that this takes seconds with ranks that hang, too.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import psutil
from torch.distributed import Store  # type: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousTimeout,
)

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.distributed.board import serve
from scaling.distributed.ranks import NOT_STARTED, Ended
from scaling.runs.record import RunError

MONITOR_EVERY_S = 0.2
GRACE_S = 5.0
"""Between the end of one rank and the death of the others. They end together, or one has failed."""
ABANDON_AFTER_S = 5.0
"""A stopped agent without ranks that still waits for other nodes."""
NODES_MEET_WITHIN_S = 300.0
NODES_PART_WITHIN_S = 10.0
_INTO_LOGS = 'to="$1/rank_$RANK"; shift; exec "$@" >"$to.stdout.log" 2>"$to.stderr.log"'
"""For the shell: the files of AttemptFolder.log_path. `exec` keeps the pid that the agent knows."""


@dataclass(frozen=True)
class Nodes:
    """The machines of a run, and this one's place among them."""

    store: Store
    """Kept by the first node, for as long as the run is in hand."""
    address: str
    """Of this node, as the others reach it."""
    count: int = 1
    index: int = 0

    def n_local(self, world_size: int) -> int:
        """How many of the ranks run here."""
        return (self.index + 1) * world_size // self.count - self.index * world_size // self.count


def this_node() -> Nodes:
    """A run on this machine alone."""
    return Nodes(serve(0), "127.0.0.1")


class ElasticGroup:
    """A `RankGroup`: this node's share of the ranks."""

    def __init__(self, nodes: Nodes, world_size: int, arguments: Sequence[str]) -> None:
        """`arguments` of scaling.distributed.rank, but for --attempt and --parent."""
        self._nodes, self._world_size, self._arguments = nodes, world_size, list(arguments)
        self._agent: LocalElasticAgent | None = None
        self._handler: RendezvousHandler | None = None
        self._thread: threading.Thread | None = None
        self._result: RunResult | None = None
        self._problem: RunError | None = None
        self._killed: set[int] = set()
        self._stopped = False
        self._incomplete_since_s: float | None = None

    def start(self, attempt: AttemptFolder) -> None:
        name = attempt.path.relative_to(attempt.path.parents[2])
        self._handler = self._rendezvous(str(name))
        rank = [sys.executable, "-m", "scaling.distributed.rank", "--attempt", str(attempt.path)]
        rank += ["--parent", str(os.getpid()), *self._arguments]
        spec = WorkerSpec(
            role="rank",
            local_world_size=self._nodes.n_local(self._world_size),
            rdzv_handler=self._handler,
            entrypoint="/bin/sh",
            args=("-c", _INTO_LOGS, "sh", str(attempt.path), *rank),
            max_restarts=0,  # the supervisor retries: it knows which failures are worth it
            monitor_interval=MONITOR_EVERY_S,
        )
        self._agent = LocalElasticAgent(
            spec, _NoLogs(attempt, self._check), exit_barrier_timeout=NODES_PART_WITHIN_S
        )
        self._thread = threading.Thread(target=self._run, name="elastic agent", daemon=True)
        self._thread.start()

    def poll(self) -> Ended | None:
        assert self._thread is not None
        if self._thread.is_alive() and not self._stopped:
            self._hurry()
            return None
        failures = self._result.failures if self._result else {}
        exits = {
            rank: failure.exitcode
            for rank, failure in failures.items()
            if failure.pid not in self._killed
        }
        return Ended(exits, self._problem)

    def stop(self) -> None:
        if self._thread is None or self._handler is None or self._stopped:
            return
        self._stopped = True
        deadline = time.monotonic() + ABANDON_AFTER_S
        if self._thread.is_alive():
            with suppress(Exception):
                self._handler.set_closed()
        # An agent that waits for a node that is gone does so for minutes, with no rank started.
        while (living := self._living()) or time.monotonic() < deadline:
            self._kill(living)
            self._thread.join(0.05)
            if not self._thread.is_alive():
                return

    def _rendezvous(self, name: str) -> DynamicRendezvousHandler:
        store, count = self._nodes.store, self._nodes.count
        return DynamicRendezvousHandler.from_backend(
            name,
            store,
            C10dRendezvousBackend(store, name),
            min_nodes=count,
            max_nodes=count,
            local_addr=self._nodes.address,
            timeout=RendezvousTimeout(join=timedelta(seconds=NODES_MEET_WITHIN_S)),
        )

    def _run(self) -> None:
        """The thread. It must outlive the ranks, which the kernel kills when it ends."""
        assert self._agent is not None
        assert self._handler is not None
        # It warns of signals that it cannot handle in a thread, and names as the first failure any.
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        try:
            result = self._agent.run()
            assert isinstance(result, RunResult)
            self._result = result
        except Exception as error:
            self._problem = RunError(NOT_STARTED, f"{type(error).__name__}: {error}")
        finally:
            with suppress(Exception):
                self._handler.shutdown()

    def _check(self) -> None:
        """Last thing before the ranks are started."""
        if self._stopped:
            raise RuntimeError("stopped before its ranks were started")

    def _pids(self) -> list[int]:
        assert self._agent is not None
        workers = self._agent.get_worker_group().workers
        return [worker.id for worker in workers if isinstance(worker.id, int)]

    def _living(self) -> list[int]:
        return [pid for pid in self._pids() if _is_alive(pid)]

    def _hurry(self) -> None:
        """Kill ranks that have not ended with the others: a stopped process heeds no SIGTERM."""
        living = self._living()
        if len(living) == len(self._pids()):
            return
        self._incomplete_since_s = self._incomplete_since_s or time.monotonic()
        if time.monotonic() - self._incomplete_since_s > GRACE_S:
            self._kill(living)

    def _kill(self, pids: Sequence[int]) -> None:
        for pid in pids:
            self._killed.add(pid)
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # each has a session of its own


class _NoLogs(LogsSpecs):
    """The agent opens no files for its ranks: it would leave them open."""

    def __init__(self, attempt: AttemptFolder, check: Callable[[], None]) -> None:
        super().__init__(str(attempt.path))
        self._attempt, self._check = attempt, check

    @property
    def root_log_dir(self) -> str:
        return str(self._attempt.path)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        self._check()
        nowhere = dict.fromkeys(envs, "")
        errors = {
            local: str(self._attempt.log_path(env["RANK"], "elastic"))
            for local, env in envs.items()
        }
        return LogsDest(stdouts=nowhere, stderrs=nowhere, error_files=errors)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
