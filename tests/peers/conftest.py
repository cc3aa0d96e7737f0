"""Tests here run other packages in environments of their own, which benchmarks.peers.install makes.

PEER_ENVS names the folder of these environments (.bench by default).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.install import DEFAULT_ENVS, PEERS, python_of

HERE = Path(__file__).parent
Ask = Callable[[str, Path], dict[str, Any]]


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Runs a peer's side on a folder; returns the versions it ran with."""
    envs = Path(os.environ.get("PEER_ENVS", DEFAULT_ENVS))

    def run(peer: str, root: Path) -> dict[str, Any]:
        python = python_of(peer, envs)
        if not python.exists():
            pytest.fail(f"{PEERS[peer].package} is not in {envs}: make test-peers")
        command = [str(python), str(HERE / f"{peer}_side.py"), str(root)]
        # Not this project's path: the package must stand on its own.
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run
