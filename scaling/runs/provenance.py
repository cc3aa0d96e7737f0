"""Where a result comes from: the code, the machine, the libraries."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_COMPUTING_PACKAGES = ("torch", "triton", "numpy", "transformers", "deepspeed")


def provenance() -> dict[str, Any]:
    """The fields host, cpu, commit, commit_dirty and versions of a record's cost.

    The commit is asked for once per process: it names the code that is loaded, not what the
    working tree has become since.
    """
    commit, dirty = _commit()
    return {
        "host": socket.gethostname(),
        "cpu": cpu_model(),
        "commit": commit,
        "commit_dirty": dirty,
        "versions": versions(),
    }


def now() -> str:
    """UTC to the millisecond, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@cache
def cpu_model() -> str | None:
    """The processor's name as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or None
    names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


@cache
def versions() -> dict[str, str]:
    """Of Python and of each package that computes, where installed; none is imported."""
    found = {"python": platform.python_version()}
    for package in _COMPUTING_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def _commit(package: Path = _PACKAGE) -> tuple[str | None, bool | None]:
    """The commit this package was checked out from; (None, None) when it was not.

    A copy installed inside some other repository is not tracked there, so it has none.
    """
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(package, "rev-parse", "HEAD")
    if tracked is None or commit is None:
        return None, None
    return commit, bool(_git(package, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is missing."""
    # No optional locks: looking must never disturb a git command that somebody else runs.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
