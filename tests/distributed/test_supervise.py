"""Ranks as processes of their own: carried to the end, told to stop, and never left behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from scaling.distributed import supervise
from scaling.distributed.elastic import this_node
from scaling.plan import RunPlan
from scaling.runs.record import RunOutcome, Status
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease, LeaseLost
from tests.compose import ROOT

BODY = "tests.distributed.bodies:count"
MESH = ["mesh.dp=2", "mesh.latent=2", "launcher.collective_timeout_s=60"]
SUM = 2100.0
"""Of 1..20, times 1 + 2 + 3 + 4."""


def ranks_of(folder: RunFolder) -> list[int]:
    """Living ranks of a run."""
    return [process.pid for process in psutil.process_iter() if _is_rank(process, folder)]


def _is_rank(process: psutil.Process, folder: RunFolder) -> bool:
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    return "scaling.distributed.rank" in words and str(folder.path) in words


def wait_for(condition: Callable[[], object], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.02)


def supervised(
    folder: RunFolder, *, stop_after_rows: int | None = None, body: str = BODY
) -> tuple[RunOutcome, list[dict]]:
    rows: list[dict] = []
    plan = RunPlan.from_json(folder.read_plan())
    lease = Lease.acquire(folder.path, timeout_s=30)
    assert lease is not None
    with lease:
        ranks = partial(supervise.local_ranks, plan, folder, lease.token, this_node(), body=body)
        outcome = supervise.Supervisor(
            folder,
            lease,
            rows.append,
            lambda: stop_after_rows is not None and len(rows) >= stop_after_rows,
            ranks,
        ).carry_out()
    assert ranks_of(folder) == []
    return outcome, rows


def test_a_wish_to_stop_ends_all_ranks_at_one_step_and_the_next_call_goes_on(make_run) -> None:
    folder = make_run(*MESH, steps=20, step_s=0.1)
    outcome, rows = supervised(folder, stop_after_rows=1)
    assert outcome.status is Status.preempted
    ends = {json.loads(path.read_text()) for path in folder.path.glob("ended_*.json")}
    assert ends == {outcome.result["steps"]}
    assert 0 < outcome.result["steps"] < 20
    assert rows[0]["step"] >= 1
    (folder.path / "wishes.json").write_text('{"steps": 20}')
    outcome, _ = supervised(folder)
    assert outcome.status is Status.done
    assert outcome.result == {"steps": 20, "sum": SUM}
    assert outcome.cost["resumed_at_step"] in ends


def test_an_exception_is_recorded_with_its_rank_and_not_tried_again(make_run) -> None:
    folder = make_run(*MESH, at_step=4, rank=2, how="raise_always")
    outcome, _ = supervised(folder)
    assert outcome.status is Status.failed
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.rank) == ("ArithmeticError", 2)
    assert 'raise ArithmeticError("a fault of this run")' in (outcome.error.traceback or "")
    assert outcome.cost["attempts"] == 1


@pytest.mark.faults
def test_a_rank_that_dies_each_time_is_told_after_the_last_try(make_run) -> None:
    folder = make_run(*MESH, "launcher.retries=1", at_step=4, rank=1, how="exit_always")
    outcome, _ = supervised(folder)
    assert outcome.error is not None
    assert outcome.error.message == "rank 1 exited with code 7 (the last of 2 tries)"
    assert outcome.error.traceback == "last words before exit_always"
    assert (outcome.error.rank, outcome.cost["attempts"]) == (1, 2)


def test_a_run_that_was_taken_over_ends_quietly(make_run) -> None:
    folder = make_run("mesh.latent=2", steps=1000, step_s=0.05)

    def take_over(_row: dict) -> None:
        (folder.path / "leases" / "000002.json").write_text("{}")

    lease = Lease.acquire(folder.path, timeout_s=30)
    assert lease is not None
    ranks = partial(
        supervise.local_ranks, RunPlan.from_json(folder.read_plan()), folder, lease.token,
        this_node(), body=BODY,
    )  # fmt: skip
    with pytest.raises(LeaseLost):
        supervise.Supervisor(folder, lease, take_over, lambda: False, ranks).carry_out()
    lease.release()
    assert ranks_of(folder) == []


def test_ranks_die_with_a_supervisor_that_is_killed(make_run, request) -> None:
    folder = make_run("mesh.latent=2", steps=1000, step_s=0.05)
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.worker", str(folder.path)], cwd=ROOT
    )
    request.addfinalizer(lambda: (worker.kill(), worker.wait()))
    wait_for(folder.metrics_path.exists)
    assert len(ranks_of(folder)) == 2
    worker.kill()
    worker.wait()
    wait_for(lambda: not ranks_of(folder), within_s=5)


@pytest.mark.faults
def test_sigterm_of_the_worker_ends_a_run_as_preempted(make_run, request) -> None:
    folder = make_run("mesh.latent=2", steps=1000, step_s=0.05)
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.worker", str(folder.path)], cwd=ROOT
    )
    request.addfinalizer(lambda: (worker.kill(), worker.wait()))
    wait_for(folder.metrics_path.exists)
    started = time.monotonic()
    os.kill(worker.pid, signal.SIGTERM)
    worker.wait(20)
    assert time.monotonic() - started < 10
    record = folder.read_record()
    assert record.status is Status.preempted
    assert 0 < record.result["steps"] < 1000


def test_a_run_leaves_no_file_open_and_its_log_behind(make_run) -> None:
    folder = make_run("mesh.latent=2", at_step=2, rank=1, how="raise_always")
    supervised(folder)  # the first one: what it opens once and for all is not counted
    before = psutil.Process().num_fds()
    supervised(folder)
    gc.collect()  # a file that is collected instead of closed is a warning, and so an error
    assert psutil.Process().num_fds() <= before
    (log,) = folder.path.glob("attempts/000002/1/rank_1.stderr.log")
    assert "last words before raise" in log.read_text()


def test_half_a_row_is_not_reported(tmp_path: Path) -> None:
    path, rows = tmp_path / "metrics.jsonl", []
    path.write_text('{"step": 1}\n')
    tail = supervise.MetricsTail(path, rows.append)
    tail.look(at_once=True)
    with path.open("a") as file:
        file.write('{"step": 2}\n{"step": 3')
        file.flush()
        tail.look(at_once=True)
        tail.look(at_once=True)
        file.write("}\n")
    tail.look(at_once=True)
    assert rows == [{"step": 2}, {"step": 3}]
