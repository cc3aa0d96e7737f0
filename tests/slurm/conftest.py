"""A virtual SLURM for the tests marked `slurm`, all of which are in this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import VirtualCluster, missing_programs

# The tiny model and text of the harvest's own tests.
from tests.unit.activations.conftest import llama_folder, text_folder  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[VirtualCluster]:
    if missing := missing_programs():
        pytest.skip(f"no SLURM here ({', '.join(missing)}): apt-get install slurm-wlm munge")
    pytest.importorskip("submitit")
    with VirtualCluster() as up:
        os.environ.update(up.environment)
        paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        yield up


@pytest.fixture
def no_job_left(cluster: VirtualCluster) -> Iterator[None]:
    """Whatever becomes of a test, the next one finds an empty queue."""
    yield
    subprocess.run(["scancel", "--signal=KILL", f"--user={os.getuid()}"], capture_output=True)
    subprocess.run(["scancel", f"--user={os.getuid()}"], capture_output=True)


def python(*arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )
