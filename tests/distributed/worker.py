"""A worker for one run of the counting body: `python -m tests.distributed.worker FOLDER`."""

from __future__ import annotations

import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from scaling.distributed import supervise
from scaling.distributed.elastic import this_node
from scaling.plan import RunPlan
from scaling.runs.record import RunOutcome
from scaling.runs.store import RunFolder
from scaling.take_up import take_up


class Parent:
    def __init__(self) -> None:
        self.stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda _signal, _frame: self.stop.set())

    def send(self, **event: Any) -> None:
        pass


def count(folder: RunFolder, lease, report, stop) -> RunOutcome:
    plan = RunPlan.from_json(folder.read_plan())
    body = "tests.distributed.bodies:count"
    ranks = partial(supervise.local_ranks, plan, folder, lease.token, this_node(), body=body)
    return supervise.Supervisor(folder, lease, report, stop, ranks).carry_out()


if __name__ == "__main__":
    take_up(RunFolder(Path(sys.argv[1])), {"lease_timeout_s": 60.0}, count, Parent())
