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
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
X86_FLAGS = ("-mprefer-vector-width=512",)
"""The compiler's own choice is 256 bits, for processors that slow down at 512."""
THREADING = (("-fopenmp",), ("-fopenmp-simd",))
"""Tried in turn: some compilers (Apple's) come without OpenMP's threads."""
COMPILERS = ("g++", "clang++", "c++")


class NativeUnavailableError(RuntimeError):
    """The native library could not be built here; the message says why and what to do."""


@cache
def library_path() -> Path:
    """The compiled library, built if the cache does not have it.

    Raises:
        NativeUnavailableError: no C++ compiler, or it failed.
    """
    compiler = _compiler()
    flags = (*FLAGS, *(X86_FLAGS if platform.machine() == "x86_64" else ()))
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
            problem = ""
            for threading in THREADING:
                problem = _attempt([compiler, *flags, *threading], fresh)
                if not problem:
                    fresh.replace(path)
                    return
            raise NativeUnavailableError(
                f"{problem}. Set CXX to another compiler, or use kernels=torch"
            )
    except OSError as error:
        raise NativeUnavailableError(
            f"cannot write the compiled kernels to {path.parent}: {error}. "
            "Set XDG_CACHE_HOME to a folder with space, or use kernels=torch"
        ) from error


def _attempt(command: list[str], output: Path) -> str:
    """Run the compiler; returns what it complained of, "" if it succeeded."""
    full = [*command, "-fPIC", "-shared", str(SOURCE), "-o", str(output)]
    done = subprocess.run(full, capture_output=True, text=True, check=False)
    complaint = done.stderr.strip()[:500] or f"exit status {done.returncode}"
    return f"{' '.join(full)} failed: {complaint}" if done.returncode else ""
