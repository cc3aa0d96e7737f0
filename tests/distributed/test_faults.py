"""Runs of several processes in which one is killed, stopped or gone: `make test-faults` for all."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaling.distributed import supervise
from scaling.runs.record import RunError, RunOutcome, Status
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease
from scaling.train.checkpoint import checkpoint_steps, open_checkpoint
from tests.compose import ROOT
from tests.distributed.conftest import plan_run
from tests.distributed.test_supervise import BODY, SUM, ranks_of, supervised, wait_for

RUN = [
    "mesh.dp=2", "mesh.latent=2", "train.tokens=12_800", "train.ema_decay=0.9",
    "train.clip_norm=0.5", "checkpoint.every_tokens=1_280", "logger.every_tokens=256",
]  # fmt: skip
STEPS = 50
KILLS = 20
IN_THE_DEFAULT_SUITE = 2


def carried_out(folder: RunFolder) -> RunOutcome:
    lease = Lease.acquire(folder.path, timeout_s=30)
    assert lease is not None
    with lease:
        return supervise.supervise(folder, lease, lambda _: None, lambda: False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    outcome = carried_out(plan_run(tmp_path_factory.mktemp("undisturbed"), *RUN))
    assert outcome.status is Status.done, outcome.error
    assert outcome.result["steps"] == STEPS
    return outcome


class Killer(threading.Thread):
    """kill -9 of a random rank once the run has come to a random step."""

    def __init__(
        self, folder: RunFolder, dice: random.Random, how: signal.Signals = signal.SIGKILL
    ) -> None:
        super().__init__(daemon=True)
        self.how = how
        self.folder, self.at_step, self.dice = folder, dice.randrange(1, STEPS - 5), dice
        self.killed: int | None = None
        self.start()

    def run(self) -> None:
        while not any(row["step"] >= self.at_step for row in self.folder.metrics()):
            time.sleep(0.002)
        victims = ranks_of(self.folder)
        if victims:
            self.killed = self.dice.choice(victims)
            os.kill(self.killed, self.how)


def _kills() -> list[Any]:
    rest = [
        pytest.param(seed, marks=pytest.mark.faults) for seed in range(IN_THE_DEFAULT_SUITE, KILLS)
    ]
    return [*range(IN_THE_DEFAULT_SUITE), *rest]


@pytest.mark.parametrize("seed", _kills())
def test_a_killed_rank_costs_no_bit(tmp_path: Path, undisturbed: RunOutcome, seed: int) -> None:
    folder = plan_run(tmp_path, *RUN, "launcher.retries=2")
    killer = Killer(folder, random.Random(seed))
    outcome = carried_out(folder)
    killer.join(10)
    assert killer.killed is not None
    assert outcome.status is Status.done, outcome.error
    assert outcome.result == undisturbed.result
    assert outcome.cost["attempts"] == 2
    assert outcome.warnings == []  # no checkpoint was passed over
    assert ranks_of(folder) == []
    assert not psutil.pid_exists(killer.killed)
    for step in checkpoint_steps(folder.checkpoints_path):
        open_checkpoint(folder.checkpoints_path / f"step_{step:08d}", folder.run_id).check()


@pytest.mark.faults
def test_a_killed_rank_costs_no_bit_under_deepspeed(tmp_path: Path) -> None:
    """As above, with ZeRO's sharded moments in the checkpoint."""
    calm = carried_out(plan_run(tmp_path / "calm", *RUN, "engine=deepspeed"))
    assert calm.status is Status.done, calm.error
    for seed in range(3):
        folder = plan_run(tmp_path / str(seed), *RUN, "engine=deepspeed", "launcher.retries=2")
        killer = Killer(folder, random.Random(seed))
        outcome = carried_out(folder)
        assert killer.killed is not None
        assert outcome.status is Status.done, outcome.error
        assert outcome.result == calm.result
        assert outcome.cost["bit_exact"]
        assert outcome.cost["attempts"] == 2
        assert ranks_of(folder) == []


@pytest.mark.faults
def test_the_comparison_can_fail(tmp_path: Path, undisturbed: RunOutcome) -> None:
    assert carried_out(plan_run(tmp_path, *RUN, "train.seed=1")).result != undisturbed.result


@pytest.mark.faults
def test_a_stopped_rank_is_told_by_step_and_operation(make_run) -> None:
    folder = make_run(
        "mesh.dp=2", "mesh.latent=2", "launcher.retries=0", "launcher.collective_timeout_s=6",
        at_step=5, rank=3, how="stop",
    )  # fmt: skip
    started = time.monotonic()
    outcome, _ = supervised(folder)
    assert time.monotonic() - started < 30
    assert outcome.error is not None
    assert outcome.error.type == "CollectiveTimeout"
    assert "at step 5" in outcome.error.message
    assert "all_reduce of " in outcome.error.message


@pytest.mark.faults
def test_what_deepspeed_waits_for_is_named_too(tmp_path: Path) -> None:
    folder = plan_run(
        tmp_path, "mesh.dp=2", "engine=deepspeed", "train.tokens=256_000",
        "launcher.retries=0", "launcher.collective_timeout_s=6",
    )  # fmt: skip
    stopper = Killer(folder, random.Random(0), signal.SIGSTOP)
    outcome = carried_out(folder)
    assert stopper.killed is not None
    assert outcome.error is not None
    assert outcome.error.type == "CollectiveTimeout"
    assert " over dp at step " in outcome.error.message
    assert ranks_of(folder) == []


@pytest.mark.faults
def test_a_hung_run_is_tried_again(make_run) -> None:
    folder = make_run(
        "mesh.latent=2", "launcher.collective_timeout_s=6", at_step=5, rank=0, how="hang"
    )
    outcome, _ = supervised(folder)
    assert outcome.status is Status.done
    assert (outcome.cost["attempts"], outcome.cost["resumed_at_step"]) == (2, 4)


@pytest.mark.faults
def test_a_preempted_launch_goes_on_where_it_was(tmp_path: Path, undisturbed: RunOutcome) -> None:
    """SIGTERM of the worker, as the launch starts it, and a second call."""
    folder = plan_run(tmp_path, *RUN)
    worker = _worker(folder)
    wait_for(lambda: any(row["step"] >= 10 for row in folder.metrics()))
    worker.send_signal(signal.SIGTERM)
    _finished(worker)
    record = folder.read_record()
    assert record.status is Status.preempted
    stopped_at = record.result["steps"]
    assert 10 <= stopped_at < STEPS
    _finished(_worker(folder))
    record = folder.read_record()
    assert record.status is Status.done
    assert record.result == undisturbed.result
    assert record.cost["resumed_at_step"] == stopped_at
    assert ranks_of(folder) == []


def _worker(folder: RunFolder) -> subprocess.Popen[str]:
    command = json.dumps({"runs": [str(folder.path)], "lease_timeout_s": 60.0})
    worker = subprocess.Popen(
        [sys.executable, "-m", "scaling.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert worker.stdin is not None
    worker.stdin.write(command + "\n")
    worker.stdin.flush()
    return worker


def _finished(worker: subprocess.Popen[str]) -> None:
    """Wait for the event that tells the end of its run, then let it go."""
    assert worker.stdout is not None
    for line in worker.stdout:
        if json.loads(line)["event"] == "finished":
            break
    worker.communicate(timeout=10)


def nodes_of(folder: RunFolder, n_nodes: int = 2) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--run", str(folder.path), "--nodes", str(n_nodes), "--body", BODY]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "scaling.distributed.node", *words, "--node", str(node),
             "--rendezvous", f"127.0.0.1:{port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        for node in range(n_nodes)
    ]  # fmt: skip


def ended_within(processes: list[subprocess.Popen[bytes]], within_s: float) -> list[int]:
    deadline = time.monotonic() + within_s
    try:
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def error_of(folder: RunFolder) -> RunError:
    error = folder.read_record().error
    assert error is not None
    return error


def test_a_rank_killed_on_one_node_ends_both(make_run) -> None:
    folder = make_run("mesh.latent=2", "launcher.retries=0", steps=1000, step_s=0.05)
    nodes = nodes_of(folder)
    wait_for(folder.metrics_path.exists)
    victim = json.loads((folder.path / "pid_1.json").read_text())
    os.kill(victim, signal.SIGKILL)
    assert ended_within(nodes, 30) == [1, 1]
    error = error_of(folder)
    assert (error.type, error.rank) == ("RankDied", 1)
    assert error.message == "rank 1 was killed by SIGKILL (often: out of memory)"
    assert ranks_of(folder) == []


@pytest.mark.faults
def test_an_exception_on_one_node_is_recorded_by_the_other(make_run) -> None:
    folder = make_run("mesh.dp=2", "mesh.latent=2", at_step=5, rank=3, how="raise_always")
    assert ended_within(nodes_of(folder), 60) == [1, 1]
    error = error_of(folder)
    assert (error.type, error.rank) == ("ArithmeticError", 3)
    assert "a fault of this run" in (error.traceback or "")


@pytest.mark.faults
def test_nodes_try_again_together(make_run) -> None:
    folder = make_run("mesh.dp=2", "mesh.latent=2", at_step=5, rank=3, how="kill")
    assert ended_within(nodes_of(folder), 60) == [0, 0]
    record = folder.read_record()
    assert record.result == {"steps": 20, "sum": SUM}
    assert record.cost["attempts"] == 2


@pytest.mark.faults
@pytest.mark.parametrize("node", [0, 1])
def test_sigterm_of_any_node_preempts_the_run(make_run, node: int) -> None:
    folder = make_run("mesh.latent=2", steps=1000, step_s=0.05)
    nodes = nodes_of(folder)
    wait_for(folder.metrics_path.exists)
    nodes[node].send_signal(signal.SIGTERM)
    assert ended_within(nodes, 15) == [3, 3]
    assert folder.status() is Status.preempted
    assert ranks_of(folder) == []


@pytest.mark.faults
def test_a_node_that_is_killed_ends_the_run(make_run) -> None:
    folder = make_run("mesh.latent=2", steps=1000, step_s=0.05)
    nodes = nodes_of(folder)
    wait_for(folder.metrics_path.exists)
    nodes[1].kill()
    assert ended_within(nodes, 30)[0] == 1
    assert error_of(folder).type == "NodeLost"
    assert ranks_of(folder) == []


@pytest.mark.faults
def test_the_first_node_takes_the_others_with_it(make_run) -> None:
    folder = make_run("mesh.latent=2", steps=1000, step_s=0.05)
    nodes = nodes_of(folder)
    wait_for(folder.metrics_path.exists)
    nodes[0].kill()
    assert ended_within(nodes, 30)[1] == 1
    assert folder.holder() is None
    assert ranks_of(folder) == []
