import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, replace

import fake_runs
import psutil
import pytest
from fake_runs import FakePlan, launch, noted
from rich.console import Console

from scaling.errors import UserError
from scaling.runs.record import Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.lease import Lease
from scaling.sweep import schedule
from scaling.sweep.interrupt import Interrupts
from scaling.sweep.pool import Worker
from scaling.sweep.schedule import WorkersUnusable


def _statuses(store: SweepStore) -> dict[str, str]:
    return {folder.run_id: str(folder.status()) for folder in store.folders()}


def _trained(store: SweepStore) -> Counter[tuple[str, ...]]:
    return Counter(tuple(step) for step in noted(store, "steps"))


def _launch_apart(
    store: SweepStore, plans: list[FakePlan], *arguments: str
) -> subprocess.Popen[str]:
    described = json.dumps([asdict(plan) for plan in plans])
    return subprocess.Popen(
        [sys.executable, fake_runs.__file__, str(store.path), described, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait_for(condition, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.02)


def _no_worker_left(store: SweepStore) -> bool:
    pids = {int(pid) for pid in _worker_pids(store)}
    return not any(psutil.pid_exists(pid) for pid in pids)


def _worker_pids(store: SweepStore) -> list[int]:
    leases = store.path.glob("*/leases/*.json")
    return [json.loads(lease.read_text())["pid"] for lease in leases]


def test_all_runs_are_done_and_a_second_call_trains_nothing(store: SweepStore):
    plans = [FakePlan(str(index)) for index in range(5)]
    out = io.StringIO()
    summary = launch(store, plans, Console(file=out, width=120))
    assert summary.exit_code == 0
    assert set(_statuses(store).values()) == {"done"}
    assert out.getvalue().count("0.2500") == 10  # a line and a table row each
    trained = _trained(store)
    assert set(trained.values()) == {1}
    again = launch(store, plans)
    assert (again.exit_code, again.skipped) == (0, 5)
    assert _trained(store) == trained
    record = store.folder("3").read_record()
    assert record.cost["attempts"] == 1
    assert record.cost["wall_s"] >= 0.03
    assert any("result.seed is missing" in warning for warning in record.warnings)


def test_a_failing_run_stops_no_other_and_is_retried_by_the_next_call(store: SweepStore):
    plans = [FakePlan("a", misbehavior="raise"), FakePlan("b"), FakePlan("c", step_s=0.1)]
    out = io.StringIO()
    assert launch(store, plans, Console(file=out, width=120)).exit_code == 1
    assert _statuses(store) == {"a": "failed", "b": "done", "c": "done"}
    error = store.folder("a").read_record().error
    assert (error.type, error.message) == ("RuntimeError", "a fault of this run")
    assert 'raise RuntimeError("a fault of this run")' in error.traceback
    assert "RuntimeError: a fault of this run" in out.getvalue()
    assert launch(store, plans).exit_code == 0
    assert _statuses(store) == {"a": "done", "b": "done", "c": "done"}
    assert store.folder("a").read_record().error is None
    assert set(_trained(store).values()) == {1}  # it resumed where it had failed


def test_a_folder_removed_meanwhile_ends_its_run_alone(store: SweepStore):
    plans = [FakePlan("a", misbehavior="remove_folder"), FakePlan("b"), FakePlan("c")]
    out = io.StringIO()
    summary = launch(store, plans, Console(file=out, width=120))
    assert summary.exit_code == 1
    assert {row.run_id: str(row.status) for row in summary.rows} == {
        "a": "failed",
        "b": "done",
        "c": "done",
    }
    assert "was removed" in out.getvalue()
    assert not store.folder("a").path.exists()
    assert launch(store, [FakePlan("a"), *plans[1:]]).exit_code == 0


def test_a_record_damaged_meanwhile_ends_its_run_alone(store: SweepStore):
    plans = [FakePlan("a", misbehavior="damage_others"), FakePlan("y"), FakePlan("z")]
    out = io.StringIO()
    summary = launch(store, plans, Console(file=out, width=120), workers=1)
    assert {row.run_id: str(row.status) for row in summary.rows} == {
        "a": "done",
        "y": "done",
        "z": "failed",
    }
    assert "record.json is not valid JSON" in out.getvalue()


def test_bad_input_is_told_without_a_traceback(store: SweepStore):
    assert launch(store, [FakePlan("a", misbehavior="bad_input")]).exit_code == 1
    error = store.folder("a").read_record().error
    assert error.message == "train.lr=-1 is negative; set it above 0"
    assert error.traceback is None


def test_a_diverged_run_is_a_result_and_stays(store: SweepStore):
    plans = [FakePlan("a", misbehavior="diverge"), FakePlan("b")]
    for _ in range(2):
        assert launch(store, plans).exit_code == 0
    assert _statuses(store) == {"a": "diverged", "b": "done"}
    assert store.folder("a").read_record().result == {"normalized_mse": None}
    assert len(noted(store, "starts")) == 2


@pytest.mark.parametrize("misbehavior", ["", "diverge"])
def test_checkpoints_of_a_run_with_a_result_are_dropped(store: SweepStore, misbehavior: str):
    plans = [FakePlan("a", misbehavior=misbehavior)]
    checkpoints = store.folder("a").checkpoints_path
    launch(store, plans)
    assert not checkpoints.exists()
    checkpoints.mkdir()  # as a kill between the record and the removal leaves them
    launch(store, plans)
    assert not checkpoints.exists()


@pytest.mark.parametrize("death", ["kill", "segfault", "exit"])
def test_a_worker_that_dies_is_replaced_and_its_run_goes_on(store: SweepStore, death: str):
    plans = [FakePlan("a", misbehavior=death), FakePlan("b"), FakePlan("c")]
    assert launch(store, plans, retries=1).exit_code == 0
    assert set(_statuses(store).values()) == {"done"}
    assert set(_trained(store).values()) == {1}
    assert store.folder("a").read_record().cost["attempts"] == 2


def test_a_worker_told_to_stop_by_others_costs_its_run_no_retry(store: SweepStore):
    plans = [FakePlan("a", misbehavior="sigterm"), FakePlan("b")]
    assert launch(store, plans, retries=0, workers=1).exit_code == 0
    assert set(_statuses(store).values()) == {"done"}
    assert set(_trained(store).values()) == {1}
    assert store.folder("a").read_record().cost["attempts"] == 2


def test_a_run_stopped_again_and_again_is_left_preempted(store: SweepStore, monkeypatch):
    monkeypatch.setattr(schedule, "_STOPS", 2)
    out = io.StringIO()
    plans = [FakePlan("a", misbehavior="sigterm_always"), FakePlan("b")]
    summary = launch(store, plans, Console(file=out, width=200), retries=0, workers=1)
    assert summary.exit_code == 1
    assert _statuses(store) == {"a": "preempted", "b": "done"}
    assert "told to stop 3 times in this launch" in out.getvalue()


def test_an_idle_worker_told_to_stop_costs_the_next_run_no_retry(store: SweepStore, monkeypatch):
    given, give = [], Worker.give

    def give_too_late(worker: Worker, folder: RunFolder, **options: float) -> None:
        given.append(folder.run_id)
        if len(given) == 2:
            worker.terminate()
            worker._process.wait(20)
        give(worker, folder, **options)

    monkeypatch.setattr(Worker, "give", give_too_late)
    assert launch(store, [FakePlan("a"), FakePlan("b")], retries=0, workers=1).exit_code == 0
    assert given == ["a", "b", "b"]


def test_a_worker_that_dies_after_its_result_has_not_failed(store: SweepStore):
    out = io.StringIO()
    plans = [FakePlan("a", misbehavior="kill_after_record")]
    assert launch(store, plans, Console(file=out, width=120), retries=0).exit_code == 0
    assert _statuses(store) == {"a": "done"}
    assert "failed" not in out.getvalue()


def test_a_run_that_always_kills_its_worker_fails_by_name(store: SweepStore):
    plans = [FakePlan("a", misbehavior="kill_always"), FakePlan("b", steps=8)]
    assert launch(store, plans, retries=2).exit_code == 1
    assert _statuses(store) == {"a": "failed", "b": "done"}
    error = store.folder("a").read_record().error
    assert error.type == "WorkerDied"
    assert "killed by SIGKILL" in error.message
    assert "3 times" in error.message
    assert "last words before kill" in error.traceback
    assert len([start for start in noted(store, "starts") if start[0] == "a"]) == 3


def test_two_launches_at_once_train_every_run_once(store: SweepStore):
    plans = [FakePlan(f"{index:02}", step_s=0.02) for index in range(12)]
    launches = [_launch_apart(store, plans) for _ in range(2)]
    outputs = [launch.communicate(timeout=60)[0] for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], outputs
    assert set(_statuses(store).values()) == {"done"}
    assert len(noted(store, "starts")) == 12
    assert set(_trained(store).values()) == {1}
    assert {start[0] for start in noted(store, "starts")} == {plan.run_id for plan in plans}
    assert all(output.count("0.2500") >= 12 for output in outputs)  # both know all results


def test_without_leases_the_test_above_would_fail(store: SweepStore):
    plans = [FakePlan(str(index), step_s=0.15) for index in range(4)]
    launches = [_launch_apart(store, plans, "--runner=broken_leases:run") for _ in range(2)]
    for apart in launches:
        apart.communicate(timeout=60)
    assert len(noted(store, "starts")) > 4


def test_a_run_held_elsewhere_is_waited_for_while_others_train(store: SweepStore):
    plans = [FakePlan("a", estimated_s=9), FakePlan("b")]
    with Lease.acquire(store.folder("a").path, timeout_s=60) as lease:
        seen: list[object] = []
        waiting = threading.Thread(target=lambda: seen.append(launch(store, plans)))
        waiting.start()
        _wait_for(lambda: store.folder("b").status() is Status.done)
        time.sleep(0.5)
        assert not noted(store, "starts")[1:]
        record = store.folder("a").read_record()
        done = replace(record, status=Status.done, result={"normalized_mse": 0.5})
        store.folder("a").write_record(done, lease)
    waiting.join(20)
    assert seen[0].exit_code == 0
    assert seen[0].rows[0].result == {"normalized_mse": 0.5}
    assert [start[0] for start in noted(store, "starts")] == ["b"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_launch_leaves_a_store_that_the_next_completes(store: SweepStore, number):
    plans = [FakePlan(str(index), steps=40, step_s=0.02) for index in range(4)]
    interrupted = _launch_apart(store, plans)
    _wait_for(lambda: len(noted(store, "steps")) > 10)
    asked = time.monotonic()
    interrupted.send_signal(number)
    output = interrupted.communicate(timeout=20)[0]
    assert interrupted.returncode == 130, output
    assert time.monotonic() - asked < 10
    assert _no_worker_left(store)
    assert Counter(_statuses(store).values()) == {"preempted": 2, "planned": 2}
    assert launch(store, plans).exit_code == 0
    assert set(_statuses(store).values()) == {"done"}
    assert set(_trained(store).values()) == {1}
    assert len(_trained(store)) == 4 * 40


def test_an_interrupt_while_workers_start_is_no_failed_start(store: SweepStore):
    plans = [FakePlan(str(index)) for index in range(4)]
    described = json.dumps([asdict(plan) for plan in plans])
    arguments = [str(store.path), described, "--runner=slow_start:run", "--workers=4"]
    interrupted = subprocess.Popen(
        [sys.executable, fake_runs.__file__, *arguments], stdout=subprocess.PIPE, text=True
    )
    _wait_for(lambda: len(list(store.logs_path.glob("worker-*"))) == 4)
    time.sleep(0.3)
    interrupted.send_signal(signal.SIGINT)
    output = interrupted.communicate(timeout=20)[0]
    assert interrupted.returncode == 130, output
    assert set(_statuses(store).values()) == {"planned"}


def test_nohup_is_heeded_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGINT):
                os.kill(os.getpid(), number)
        assert interrupts.count == 2
    finally:
        signal.signal(signal.SIGHUP, before[0])
    assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGINT)) == before


def test_a_launch_killed_outright_takes_its_workers_along(store: SweepStore):
    plans = [FakePlan(str(index), steps=40, step_s=0.02) for index in range(2)]
    killed = _launch_apart(store, plans)
    _wait_for(lambda: len(noted(store, "steps")) > 4)
    killed.kill()
    killed.communicate()
    _wait_for(lambda: _no_worker_left(store))
    assert launch(store, plans).exit_code == 0
    assert set(_trained(store).values()) == {1}


def test_everything_killed_at_once_is_resumed_without_waiting_for_leases(store: SweepStore):
    plans = [FakePlan(str(index), steps=40, step_s=0.02) for index in range(2)]
    killed = _launch_apart(store, plans)
    _wait_for(lambda: {step[0] for step in noted(store, "steps")} == {"0", "1"})
    for pid in [killed.pid, *_worker_pids(store)]:
        os.kill(pid, signal.SIGKILL)
    killed.communicate()
    assert set(_statuses(store).values()) == {"running"}
    assert launch(store, plans, lease_timeout_s=3600).exit_code == 0
    assert set(_statuses(store).values()) == {"done"}


def test_the_longest_run_starts_first(store: SweepStore):
    plans = [FakePlan("short", estimated_s=1), FakePlan("long", estimated_s=9)]
    launch(store, plans, workers=1)
    assert [start[0] for start in noted(store, "starts")] == ["long", "short"]


def test_runs_share_the_memory_there_is(store: SweepStore):
    plans = [FakePlan(str(i), estimated_memory_bytes=60, step_s=0.05) for i in range(3)]
    launch(store, plans, memory_bytes=100, workers=3)
    starts = sorted(float(start[2]) for start in noted(store, "starts"))
    ends = sorted(float(end[2]) for end in noted(store, "ends"))
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    launch(store, [replace(plan, run_id=f"{plan.run_id}x") for plan in plans], workers=3)
    starts = sorted(float(start[2]) for start in noted(store, "starts"))[3:]
    ends = sorted(float(end[2]) for end in noted(store, "ends"))[3:]
    assert not all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_points_can_be_added_and_plans_of_results_stay_as_they_were(store: SweepStore):
    launch(store, [FakePlan("a")])
    launch(store, [FakePlan("a", estimated_s=77), FakePlan("b")])
    assert _statuses(store) == {"a": "done", "b": "done"}
    assert store.folder("a").read_plan()["estimated_s"] == 1.0


def test_workers_that_cannot_start_end_the_launch_with_one_message(store: SweepStore):
    with pytest.raises(WorkersUnusable, match="No module named 'nowhere'"):
        launch(store, [FakePlan("a")], runner="nowhere:run")
    assert _statuses(store) == {"a": "planned"}


def test_a_full_disk_fails_the_run_and_keeps_its_record_whole(store: SweepStore):
    plans = [FakePlan("a", misbehavior="full_disk"), FakePlan("b", step_s=0.1)]
    out = io.StringIO()
    assert launch(store, plans, Console(file=out, width=120)).exit_code == 1
    assert "the disk is full while writing" in out.getvalue()
    assert store.folder("a").status() is Status.running  # nobody could write anything newer
    assert launch(store, plans).exit_code == 0
    assert _statuses(store) == {"a": "done", "b": "done"}


def test_a_record_of_another_version_is_told_before_anything_runs(store: SweepStore):
    store.folder("c").path.mkdir(parents=True)
    store.folder("c").record_path.write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match=r"c/record\.json is not a record this version can read"):
        launch(store, [FakePlan("a"), FakePlan("c")])
    assert not noted(store, "starts")
