"""Compiles native.cpp once per machine and keeps the library in the user's cache.

C++ and not numba: the streaming TopK needs compressed vector stores, the compiler is on every
Linux machine that trains, and the library is built in two seconds without a dependency of 100 MB.
Where there is no compiler, `kernels=torch` computes the same.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-std=c++17", "-O3", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
COMPILERS = ("g++", "clang++", "c++")
OPENMP = "-fopenmp"
TUNED = "-march=native"


class NativeUnavailableError(RuntimeError):
    """The native library could not be built here; the message says why and what to do."""


@cache
def library_path() -> Path:
    """The compiled library, built if the cache does not have it.

    Raises:
        NativeUnavailableError: no C++ compiler, or it failed.
    """
    compiler = _compiler()
    flags = (*FLAGS, TUNED, OPENMP)
    path = cache_folder() / f"native-{_digest(compiler, flags)}.so"
    if not path.exists():
        _compile(compiler, flags, path)
    return path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/sae-scaling, ~/.cache/sae-scaling by default."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "sae-scaling"


def _compiler() -> str:
    wanted = (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS
    for name in wanted:
        if found := shutil.which(name):
            return found
    raise NativeUnavailableError(
        f"no C++ compiler among {', '.join(wanted)}: install g++ (or set CXX), or use kernels=torch"
    )


def _digest(compiler: str, flags: tuple[str, ...]) -> str:
    """Names a build: source, compiler, flags, and the processor that -march=native means."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    parts = [SOURCE.read_bytes(), version, " ".join(flags).encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """The instruction sets of this machine: a home folder may be shared between several."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()}"


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Compile aside and rename: processes that build at the same time do not see halves."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            command = [compiler, *flags, str(SOURCE), "-o", str(fresh)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NativeUnavailableError(
                    f"{' '.join(command)} failed: {done.stderr.strip()[:500]}. "
                    "Set CXX to another compiler, or use kernels=torch"
                )
            fresh.replace(path)
    except OSError as error:
        raise NativeUnavailableError(
            f"cannot write the compiled kernels to {path.parent}: {error}. "
            "Set XDG_CACHE_HOME to a folder with space, or use kernels=torch"
        ) from error
