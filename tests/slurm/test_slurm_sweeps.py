"""Sweeps on a SLURM of two virtual nodes, as a user launches them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scaling.launchers.slurm_queue import SlurmJobs
from scaling.runs.store import SweepStore
from tests.compose import TINY
from tests.slurm.cluster import VirtualCluster
from tests.slurm.conftest import ROOT, python

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("no_job_left")]

LONG = ["train.tokens=8_000_000", "checkpoint.every_tokens=2_560", "logger.every_tokens=2_560"]
"""Longer than any test waits."""
OLD_STEP_ENDS_WITHIN_S = 12.0
"""A job that starts again sooner may be ended by the late word of its former step's end."""


def launch(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(str(ROOT / "launch.py"), "-m", "launcher=slurm", *arguments, cwd=cwd)


@contextmanager
def launching(cwd: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(ROOT / "launch.py"), "-m", "launcher=slurm", *arguments]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def records(cwd: Path, sweep: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in cwd.glob(f"runs/{sweep}/*/record.json")]


def wait_until(holds: Callable[[], Any], within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.3)


def has_checkpoint(store: SweepStore) -> bool:
    return any(any(folder.checkpoints_path.glob("*")) for folder in store.folders())


def test_a_sweep_completes_in_one_array_and_a_second_call_submits_nothing(tmp_path: Path) -> None:
    first = launch(tmp_path, "sweeps=smoke")
    assert first.returncode == 0, first.stdout + first.stderr
    assert [record["status"] for record in records(tmp_path, "smoke")] == ["done"] * 4
    jobs = SlurmJobs(SweepStore(tmp_path / "runs/smoke"))
    (submission,) = jobs.submissions()
    arrays = {job.partition("_")[0] for job in submission.jobs}
    assert (len(submission.jobs), len(arrays)) == (4, 1)

    again = launch(tmp_path, "sweeps=smoke", "autoencoder.k=2,4,8")
    assert again.returncode == 0
    assert len(records(tmp_path, "smoke")) == 6
    assert [len(each.jobs) for each in jobs.submissions()] == [4, 2]


def test_what_waits_or_works_is_left_alone_and_cancel_ends_it(tmp_path: Path) -> None:
    # Two at a time: of three runs one waits.
    options = ["sweep_name=long", *TINY, *LONG, "autoencoder.k=2,4,8", "launcher.max_parallel=2"]
    first = launch(tmp_path, *options, "launcher.wait=false")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "scaling.cancel" in first.stdout
    store = SweepStore(tmp_path / "runs/long")
    wait_until(lambda: sum(folder.holder() is not None for folder in store.folders()) == 2)
    second = launch(tmp_path, *options, "launcher.wait=false")
    assert "3 runs left alone" in second.stdout
    jobs = SlurmJobs(store)
    assert len(jobs.submissions()) == 1

    wait_until(lambda: has_checkpoint(store))
    cancelled = python("-m", "scaling.cancel", "runs/long", cwd=tmp_path)
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    statuses = sorted(record["status"] for record in records(tmp_path, "long"))
    assert statuses == ["planned", "preempted", "preempted"]
    assert jobs.queued() == {}
    assert all(folder.holder() is None for folder in store.folders())


def test_an_interrupted_launch_leaves_its_jobs_running(tmp_path: Path) -> None:
    with launching(tmp_path, "sweep_name=long", *TINY, *LONG) as process:
        store = SweepStore(tmp_path / "runs/long")
        wait_until(lambda: has_checkpoint(store))
        process.send_signal(signal.SIGINT)
        words = process.communicate(timeout=60)[0]
        assert process.returncode == 130
    assert "scaling.cancel" in words
    assert store.folders()[0].holder() is not None


def test_a_preempted_job_checkpoints_and_goes_on_after_its_requeue(tmp_path: Path) -> None:
    tokens = ["train.tokens=400_000", "checkpoint.every_tokens=200_192", "launcher.retries=0"]
    options = ["sweep_name=requeued", *TINY, *tokens]
    with launching(tmp_path, *options) as process:
        store = SweepStore(tmp_path / "runs/requeued")
        wait_until(lambda: any(folder.metrics() for folder in store.folders()))
        (job,) = SlurmJobs(store).queued().values()
        subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
        wait_until(lambda: records(tmp_path, "requeued")[0]["status"] == "preempted")
        time.sleep(OLD_STEP_ENDS_WITHIN_S)
        while process.poll() is None:
            start_requeued_jobs()
            time.sleep(1)
        assert process.returncode == 0
    (record,) = records(tmp_path, "requeued")
    assert record["status"] == "done"
    assert record["cost"]["attempts"] == 2
    assert record["cost"]["resumed_at_step"] % 782 != 0  # its own checkpoint, not a regular one
    assert record["cost"]["bit_exact"]


def test_a_lost_node_costs_a_second_call(tmp_path: Path, cluster: VirtualCluster) -> None:
    """Two runs of two nodes each, one after the other; the second node goes down in the first."""
    # Which of the native kernels' matmuls is fastest is measured at each launch, and they round
    # differently.
    sweep = ["sweeps=smoke", "autoencoder.k=4", "train.tokens=153_600", "kernels=torch"]
    options = [*sweep, "mesh.dp=2", "launcher.ranks_per_node=1", "launcher.max_parallel=1"]
    options += ["checkpoint.every_tokens=5_120"]
    store = SweepStore(tmp_path / "runs/smoke")
    with launching(tmp_path, *options) as process:
        wait_until(lambda: has_checkpoint(store), within_s=150)
        cluster.kill_node("n2")
        wait_until(lambda: not any(folder.holder() for folder in store.folders()), within_s=30)
        statuses = {record["status"] for record in records(tmp_path, "smoke")}
        assert "done" not in statuses
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    time.sleep(OLD_STEP_ENDS_WITHIN_S)
    cluster.start_node("n2")
    with launching(tmp_path, *options) as process:
        while process.poll() is None:
            start_requeued_jobs()
            time.sleep(2)
        assert process.returncode == 0
    done = records(tmp_path, "smoke")
    assert [record["status"] for record in done] == ["done"] * 2
    assert sorted(record["cost"]["attempts"] > 1 for record in done) == [False, True]
    assert any(record["cost"]["resumed_at_step"] > 0 for record in done)

    (tmp_path / "here").mkdir()
    alone = python(str(ROOT / "launch.py"), "-m", *sweep, cwd=tmp_path / "here")
    assert alone.returncode == 0
    expected = {r["run_id"]: r["result"] for r in records(tmp_path / "here", "smoke")}
    for record in done:
        for key in ("normalized_mse", "normalized_mse_ema", "l0"):
            found = record["result"][key]
            assert found == pytest.approx(expected[record["run_id"]][key], rel=1e-5)


def test_a_cancelled_run_of_two_nodes_leaves_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    """SLURM tells every process of the step, ranks too; still the run ends as a whole."""
    options = [*TINY, "sweep_name=long", "train.tokens=8_000_000", "logger.every_tokens=2_560"]
    options += ["mesh.latent=2", "launcher.ranks_per_node=1", "launcher.wait=false"]
    assert launch(tmp_path, *options).returncode == 0
    store = SweepStore(tmp_path / "runs/long")
    wait_until(lambda: any(folder.metrics() for folder in store.folders()))
    assert not has_checkpoint(store)  # the first regular one comes after a tenth of the run
    cancelled = python("-m", "scaling.cancel", "runs/long", cwd=tmp_path)
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    assert [record["status"] for record in records(tmp_path, "long")] == ["preempted"]
    assert has_checkpoint(store)


def start_requeued_jobs() -> None:
    """SLURM has a requeued job wait for two minutes; a test need not, once the old step ended."""
    shown = subprocess.run(
        ["squeue", "--noheader", "--states=PENDING", "--format=%A"], capture_output=True, text=True
    )
    for job in set(shown.stdout.split()):
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)


def test_a_harvest_on_two_nodes_gives_the_bytes_of_one_process(
    tmp_path: Path, llama_folder: Path, text_folder: Path
) -> None:
    options = ["activations=hf", f"activations.model={llama_folder}", "activations.layer=2"]
    options += [f"activations.text={text_folder}", "activations.context=8"]
    options += ["activations.max_tokens=2_000", "activations.eval_tokens=200"]
    options += ["train.tokens=10_240", "train.batch_tokens=256"]
    options += ["autoencoder.n_latents=64", "autoencoder.k=4", "autoencoder.dead_after_tokens=2048"]
    on_slurm = launch(
        tmp_path, *options, "data_dir=two", "launcher.harvest_nodes=2", "launcher.harvest_cpus=1"
    )
    assert on_slurm.returncode == 0, on_slurm.stdout + on_slurm.stderr
    here = python(str(ROOT / "launch.py"), *options, "data_dir=one", cwd=tmp_path)
    assert here.returncode == 0, here.stderr
    assert stores(tmp_path / "two") == stores(tmp_path / "one")
    jobs = SlurmJobs(SweepStore(tmp_path / "runs/default"))
    names = [sorted(each.jobs.values())[0].partition("-")[0] for each in jobs.submissions()]
    assert names[0] == "harvest"
    helper = (jobs.folder / f"{next(iter(jobs.submissions()[0].jobs))}_1_log.out").read_text()
    assert "made" in helper


def stores(data_dir: Path) -> dict[str, bytes]:
    folders = [path for path in (data_dir / "activations").iterdir() if "-layer" in path.name]
    assert folders
    return {
        str(path.relative_to(data_dir)): path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_sigterm_reaches_the_processes_of_a_step(tmp_path: Path) -> None:
    """Why workers and ranks must heed or ignore SIGTERM: SLURM sends it to all of them."""
    child = "import signal; signal.signal(signal.SIGTERM, lambda *_: print('child', flush=True))"
    wait = "; signal.pause()"
    parent = (
        "import subprocess, sys, signal; signal.signal(signal.SIGTERM, lambda *_: None); "
        f"subprocess.run([sys.executable, '-c', {child + wait!r}], start_new_session=True)"
    )
    with subprocess.Popen(
        ["srun", "-n1", sys.executable, "-u", "-c", parent], stdout=subprocess.PIPE, text=True
    ) as step:
        time.sleep(3)
        subprocess.run(["scancel", "--signal=TERM", f"--user={os.getuid()}"], check=True)
        assert step.communicate(timeout=30)[0].strip() == "child"
