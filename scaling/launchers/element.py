"""What one node does in a SLURM job: one run, from its last checkpoint to its end.

The job has one task per node. A run of one process is trained by a worker (`scaling.worker`); of a
larger mesh each node runs a node agent (`scaling.distributed.node`), and the first node's holds the
run's lease. Both are children of this process, which only hears the signals:

    SIGTERM   (scaling.cancel, or preemption by SLURM, which requeues the job itself)
              the run writes a checkpoint and ends as `preempted`
    SIGUSR2   (90 s before the time limit, or preemption announced so) the same; then submitit
              has the job requeued, and it goes on from the checkpoint

A wish to stop in the sweep's folder counts as SIGTERM.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any, Protocol

import submitit
from submitit.helpers import DelayedSubmission

from scaling.runs.record import FINAL
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.process import how_it_ended
from scaling.sweep.deaths import record_death
from scaling.sweep.pool import Event, Worker
from scaling.sweep.stop import last_wish
from scaling.worker import DEFAULT_RUNNER

NODE_AGENT = "scaling.distributed.node"
CHECKPOINT_WITHIN_S = 80.0
"""After a signal; submitit has SLURM send it 90 s before the end."""
_POLL_S = 1.0
_SLEEP_S = 0.1
_PORTS = (16384, 16384)
"""First port for a run's rendezvous and how many: below those that systems give out themselves."""


@dataclass
class Element:
    """A submitit task: called on each node of the job."""

    run: str
    """The run's folder."""
    environment: dict[str, str]
    lease_timeout_s: float
    retries: int
    wish: str | None
    """The last wish to stop when this was submitted: only a later one concerns it."""
    runner: str = DEFAULT_RUNNER
    node_agent: str = NODE_AGENT
    distributed: bool = False
    """A mesh of more than one process."""
    _child: Child | None = field(default=None, repr=False, compare=False)
    _stopped: bool = False

    def __call__(self) -> str:
        """The run's status at the end."""
        job, folder = submitit.JobEnvironment(), RunFolder(Path(self.run))
        first = job.global_rank == 0
        # Only the first node stops the run; all others end when it has.
        signal.signal(signal.SIGTERM, self._on_sigterm if first else _bypass)
        self._stopped = self._wish_came()
        if first:
            self._lead(folder, job)
        elif not self._stopped:
            self._attempt(job)
        return str(folder.status())

    def _lead(self, folder: RunFolder, job: submitit.JobEnvironment) -> None:
        """Until the run has ended in order, or its process has died too often."""
        deaths = 0
        while not self._stopped and folder.status() not in FINAL and self._is_free(folder):
            how = self._attempt(job)
            if how is None or self._stopped:
                return
            deaths += 1
            # The other nodes of a larger mesh have ended with this one: no further attempt here.
            if self.distributed or deaths > self.retries:
                words = f"{how}, {deaths} times in job {job.job_id} on {socket.gethostname()}"
                record_death(folder, words, "the job's log has its last words")
                return

    def checkpoint(self) -> DelayedSubmission | None:
        """Called by submitit's handler of SIGUSR2, within `__call__`: end the run in order.

        Returns what the requeued job does; None (no requeue) when the run has its result.
        """
        self._stop()
        if self._child is not None:
            self._child.poll(CHECKPOINT_WITHIN_S)
        if RunFolder(Path(self.run)).status() in FINAL:
            return None
        return DelayedSubmission(Element(**self._for_requeue()))

    def _for_requeue(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def _attempt(self, job: submitit.JobEnvironment) -> str | None:
        """One child from start to end; in words how it died, None if it did not."""
        with _without_user_signal():
            child = self._child = NodeChild(self, job) if self.distributed else WorkerChild(self)
        if self._stopped:  # the signal came while there was no child to tell
            child.terminate()
        while (ended := child.poll(_POLL_S)) is None:
            if job.global_rank == 0 and not self._stopped and self._wish_came():
                self._stop()
        return None if ended in child.in_order else f"its process {how_it_ended(ended)}"

    def _is_free(self, folder: RunFolder) -> bool:
        """Whether nobody works on the run. A node that was lost seems to, until its lease ends."""
        deadline = time.monotonic() + 1.5 * self.lease_timeout_s
        while folder.holder() is not None:
            if self._stopped or time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _wish_came(self) -> bool:
        return last_wish(SweepStore(Path(self.run).parent)) != self.wish

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        self._stopped = True
        if self._child is not None:
            self._child.terminate()


class Child(Protocol):
    @property
    def in_order(self) -> Sequence[int]:
        """Exit codes after which the record says what there is to say."""
        ...

    def poll(self, within_s: float) -> int | None:
        """Its exit code once it is through with the run."""
        ...

    def terminate(self) -> None: ...


class WorkerChild:
    """A persistent worker that is given one run."""

    in_order = (0,)

    def __init__(self, element: Element) -> None:
        folder = RunFolder(Path(element.run))
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._ended: int | None = None
        logs = SweepStore(folder.path.parent).logs_path
        self._worker = Worker(
            self._events,
            log_path=logs / f"worker-{socket.gethostname()}-{os.getpid()}-0.log",
            environment=element.environment,
            runner=element.runner,
        )
        self._worker.give(folder, lease_timeout_s=element.lease_timeout_s)
        threading.Thread(target=self._listen, daemon=True).start()

    def poll(self, within_s: float) -> int | None:
        # No lock, no event: a signal's handler polls too, whatever it interrupts.
        deadline = time.monotonic() + within_s
        while self._ended is None and time.monotonic() < deadline:
            time.sleep(_SLEEP_S)
        return self._ended

    def terminate(self) -> None:
        self._worker.terminate()

    def _listen(self) -> None:
        """To the end of the process, once it has ended the run: nothing may go on after this."""
        finished = False
        while True:
            event = self._events.get().body
            match event["event"]:
                case "finished" | "held":
                    finished = True
                    self._worker.retire()
                case "died":
                    self._ended = 0 if finished else (event["returncode"] or 1)
                    return


class NodeChild:
    """This node's agent of a run of several processes; stdout and stderr go to the job's log."""

    in_order = (0, 1, 3)  # has its result, failed, stopped or held: see scaling.distributed.node

    def __init__(self, element: Element, job: submitit.JobEnvironment) -> None:
        command = [sys.executable, "-m", element.node_agent, "--run", element.run]
        command += ["--nodes", str(job.num_nodes), "--node", str(job.node)]
        command += ["--rendezvous", rendezvous(job, element.run)]
        environment = {**os.environ, **element.environment}
        self._process = subprocess.Popen(command, env=environment, start_new_session=True)

    def poll(self, within_s: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(within_s)
        return None

    def terminate(self) -> None:
        self._process.terminate()


def rendezvous(job: submitit.JobEnvironment, run: str) -> str:
    """HOST:PORT on the job's first node, the same for all its nodes."""
    first, n_ports = _PORTS
    # The run, too, as two clusters that share a machine number their jobs alike.
    port = first + zlib.crc32(f"{job.raw_job_id} {run}".encode()) % n_ports
    return f"{_address(job.hostnames[0])}:{port}"


def _address(node: str) -> str:
    """The node's name where it resolves, else the address that SLURM has for it."""
    with suppress(OSError):
        socket.getaddrinfo(node, None)
        return node
    shown = subprocess.run(["scontrol", "show", "node", node], capture_output=True, text=True)
    found = [w.removeprefix("NodeAddr=") for w in shown.stdout.split() if w.startswith("NodeAddr=")]
    return found[0] if found else node


def _bypass(_number: int, _frame: FrameType | None) -> None:
    pass


@contextmanager
def _without_user_signal() -> Iterator[None]:
    """SLURM sends a step's signals to all processes in it; by default SIGUSR2 ends one. A child
    started in here never gets it; this process gets it a moment later."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
