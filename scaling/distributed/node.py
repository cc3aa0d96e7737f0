"""One machine of a run on several: `python -m scaling.distributed.node --run FOLDER --nodes N
--node I --rendezvous HOST:PORT`, started once on each, by a cluster's scheduler.

Node 0, on HOST, holds the run's lease, keeps its record and supervises; the others run their share
of the ranks, and end with node 0. All must see the folder, and end with the same exit code: 0 the
run has its result, 1 it failed, 3 it has been stopped or somebody else works on it. SIGTERM on any
node makes the run write a checkpoint and end as `preempted`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.distributed.board import Board, Try, connect, serve
from scaling.distributed.elastic import Nodes
from scaling.distributed.nodes_group import NodesGroup
from scaling.distributed.ranks import DEFAULT_BODY, Ended, RankGroup
from scaling.distributed.supervise import POLL_S, Report, Supervisor, local_ranks
from scaling.errors import UserError
from scaling.plan import RunPlan
from scaling.runs.record import FINAL, RunOutcome, Status
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease
from scaling.take_up import StopWish, take_up

NOT_DONE = 3
_PART_WITHIN_S = 5.0
_END_WITHIN_S = 5.0
"""After the end of a try was announced, its ranks have this long to end by themselves."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--node", type=int, required=True)
    parser.add_argument("--rendezvous", required=True, metavar="HOST:PORT")
    parser.add_argument("--body", default=DEFAULT_BODY, help="module:function for each rank")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run)
    host, _, port = options.rendezvous.rpartition(":")
    try:
        plan = RunPlan.from_json(folder.read_plan())
        _check(plan, options)
        if options.node == 0:
            return Leader(plan, folder, options, host, int(port)).lead()
        return Follower(plan, folder, options, host, int(port)).follow()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


def _check(plan: RunPlan, options: argparse.Namespace) -> None:
    if not 0 <= options.node < options.nodes <= plan.mesh.world_size:
        raise UserError(
            f"--node {options.node} --nodes {options.nodes} for a run of {plan.mesh.world_size} "
            "ranks: nodes count from 0, and each needs a rank. Use fewer."
        )


class Leader:
    """Node 0: a worker (scaling.worker) for one run, and the parent of that worker."""

    def __init__(
        self, plan: RunPlan, folder: RunFolder, options: argparse.Namespace, host: str, port: int
    ) -> None:
        self.stop = StopWish()
        self._plan, self._folder, self._options = plan, folder, options
        self._board = Board(serve(port))
        self._nodes = Nodes(connect("127.0.0.1", port), host, options.nodes, 0)
        self._numbers = itertools.count(1)

    def send(self, **event: Any) -> None:
        print(json.dumps(event), flush=True)

    def lead(self) -> int:
        signal.signal(signal.SIGTERM, lambda _signal, _frame: self.stop.set())
        command = {"lease_timeout_s": self._plan.lease_timeout_s}
        event = take_up(self._folder, command, self._run, self)
        self.send(**event)
        code = _exit_code(event)
        self._board.close(code)
        self._see_them_off()
        return code

    def _run(
        self, folder: RunFolder, lease: Lease, report: Report, _stop: Callable[[], bool]
    ) -> RunOutcome:
        group = partial(self._group, lease)
        return Supervisor(folder, lease, report, self._is_stop_wished, group).carry_out()

    def _is_stop_wished(self) -> bool:
        return self.stop.is_set() or self._board.is_stop_wished()

    def _group(self, lease: Lease) -> RankGroup:
        body = self._options.body
        here = local_ranks(self._plan, self._folder, lease.token, self._nodes, body=body)
        return NodesGroup(
            here, self._board, self._options.nodes, number=next(self._numbers), token=lease.token
        )

    def _see_them_off(self) -> None:
        """Keep the store until the others have read the end."""
        deadline = time.monotonic() + _PART_WITHIN_S
        others = range(1, self._options.nodes)
        while time.monotonic() < deadline and not all(map(self._board.has_left, others)):
            time.sleep(POLL_S)


class Follower:
    """Any other node."""

    def __init__(
        self, plan: RunPlan, folder: RunFolder, options: argparse.Namespace, host: str, port: int
    ) -> None:
        self._plan, self._folder, self._options = plan, folder, options
        self._node = options.node
        self._board = Board.at(host, port)
        address = _address_towards(host, port)
        self._nodes = Nodes(connect(host, port), address, options.nodes, options.node)
        self._stop = StopWish()

    def follow(self) -> int:
        signal.signal(signal.SIGTERM, lambda _signal, _frame: self._stop.set())
        try:
            for number in itertools.count(1):
                told = self._next_try(number)
                if told is None:
                    break
                self._board.report(number, self._node, self._see_through(told))
            code = self._board.read_end()
            self._board.leave(self._node)
            return 1 if code is None else code
        except RuntimeError as error:  # of the store; torch's own errors are such, too
            print(f"node 0 is gone ({error})", file=sys.stderr)
            return 1

    def _next_try(self, number: int) -> Try | None:
        """None at the end of the run."""
        while (told := self._board.read_try(number)) is None:
            if self._board.read_end() is not None:
                return None
            self._pause()
        return told

    def _see_through(self, told: Try) -> Ended:
        group = local_ranks(
            self._plan, self._folder, told.token, self._nodes, body=self._options.body
        )
        over_since_s: float | None = None
        try:
            group.start(AttemptFolder(told.attempt))
            while (ended := group.poll()) is None:
                self._pause()
                if over_since_s is None and self._board.is_over(told.number):
                    over_since_s = time.monotonic()
                if over_since_s and time.monotonic() - over_since_s > _END_WITHIN_S:
                    group.stop()
            return ended
        finally:
            group.stop()

    def _pause(self) -> None:
        self._board.beat(self._node)
        if self._stop.is_set():
            self._board.wish_to_stop()
        time.sleep(POLL_S)


def _exit_code(event: dict[str, Any]) -> int:
    if event["event"] == "held":
        return NOT_DONE
    status = Status(event["status"])
    if status is Status.preempted:
        return NOT_DONE
    return 0 if status in FINAL else 1


def _address_towards(host: str, port: int) -> str:
    """This machine's address on the way to `host`; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return probe.getsockname()[0]


if __name__ == "__main__":
    sys.exit(main())
