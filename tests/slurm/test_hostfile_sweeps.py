"""Sweeps on a hostfile of two hosts: this machine under two names, with and without ssh."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compose import TINY
from tests.slurm.cluster import free_ports
from tests.slurm.conftest import ROOT, python
from tests.slurm.loopback_ssh import LoopbackSsh, missing_programs

pytestmark = pytest.mark.slurm

# Measured at each launch, the native kernels' matmul may be another one, and round differently.
RUN = [*TINY, "kernels=torch"]
HOSTS = "127.0.0.1 slots=1\nlocalhost slots=1\n"


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if missing := missing_programs():
        pytest.skip(f"not found: {', '.join(missing)}: apt-get install openssh-server pdsh")
    (tmp_path / "ssh").mkdir()
    with LoopbackSsh(tmp_path / "ssh") as up:
        for name, value in up.environment.items():
            monkeypatch.setenv(name, value)
        yield


def launch(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (cwd / "hosts").write_text(HOSTS)
    options = ["launcher=deepspeed", "launcher.hostfile=hosts", "sweep_name=two"]
    port = f"launcher.master_port={free_ports(1)[0]}"
    return python(str(ROOT / "launch.py"), *RUN, *options, port, *arguments, cwd=cwd)


def result(cwd: Path) -> dict[str, Any]:
    (path,) = cwd.glob("runs/two/*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "done", record["error"]
    return record["result"]


def assert_two_hosts_gave_what_one_gives(cwd: Path) -> None:
    found = result(cwd)
    (cwd / "one").mkdir()
    alone = python(str(ROOT / "launch.py"), *RUN, "sweep_name=two", cwd=cwd / "one")
    assert alone.returncode == 0, alone.stderr
    expected = result(cwd / "one")
    assert found["normalized_mse"] == pytest.approx(expected["normalized_mse"], rel=1e-5)


def test_pdsh_starts_a_rank_on_each_host(tmp_path: Path, ssh: None) -> None:
    done = launch(tmp_path, "mesh.latent=2")
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = tmp_path.glob("runs/two/*/attempts/*/1/deepspeed.log")
    words = log.read_text()
    assert {"127.0.0.1: ", "localhost: "} <= {
        line[: line.find(":") + 2] for line in words.split("\n")
    }
    assert_two_hosts_gave_what_one_gives(tmp_path)


def test_without_ssh_the_second_host_joins(tmp_path: Path) -> None:
    arguments = ["-m", "scaling.join", "runs/two", "--host", "localhost"]
    with subprocess.Popen([sys.executable, *arguments], cwd=tmp_path) as joined:
        try:
            done = launch(tmp_path, "mesh.latent=2", "launcher.remote=none")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "scaling.join runs/two --host localhost" in done.stdout
            assert joined.wait(30) == 0  # it ends with the launch
        finally:
            joined.kill()
    assert_two_hosts_gave_what_one_gives(tmp_path)
