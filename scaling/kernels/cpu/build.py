"""Compiles native.cpp once per machine and keeps the library in the user's cache.

C++ and not numba: the streaming TopK needs compressed vector stores, the compiler is on every
Linux machine that trains, and the library is built in two seconds without a dependency of 100 MB.
Where there is no compiler, `kernels=torch` computes the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
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
    """The native library cannot be had here; the message says why and what to do."""


def native_library() -> ctypes.CDLL:
    """The native library, compiled if the cache does not have it.

    Raises:
        NativeUnavailableError: no C++ compiler, it failed, or what it made cannot be loaded.
    """
    found = _library_or_problem()
    if isinstance(found, str):
        raise NativeUnavailableError(found)
    return found


def native_name() -> str:
    """Names the build: it differs where another compiler or processor may give other bits."""
    return Path(native_library()._name).stem


@cache
def _library_or_problem() -> ctypes.CDLL | str:
    """A problem is kept too: a compiler that fails is not run again for every run of a sweep."""
    try:
        return _load(compiled_path())
    except NativeUnavailableError as error:
        return str(error)


def compiled_path() -> Path:
    """Where the compiled library is, after compiling it if need be."""
    compiler = _compiler()
    flags = (*FLAGS, *(X86_FLAGS if platform.machine() == "x86_64" else ()))
    path = cache_folder() / f"native-{_digest(compiler, flags)}.so"
    if not _is_whole(path):
        _compile(compiler, flags, path)
    return path


def _is_whole(path: Path) -> bool:
    """Whether a library is there as it was built: loading a damaged one can end the process."""
    checksum = path.with_suffix(".sha256")
    if not (path.exists() and checksum.exists()):
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == checksum.read_text()


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/sae-scaling, ~/.cache/sae-scaling by default."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "sae-scaling"


def _compiler() -> tuple[str, ...]:
    """The command: $CXX (which may hold arguments, as "ccache g++"), or the first that is found."""
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise NativeUnavailableError(f"CXX={os.environ['CXX']} is no command: {error}") from error
    wanted = [chosen] if chosen else []
    for name, *arguments in wanted or [[name] for name in COMPILERS]:
        if found := shutil.which(name):
            return (found, *arguments)
    names = ", ".join(" ".join(words) for words in wanted) or ", ".join(COMPILERS)
    raise NativeUnavailableError(f"no C++ compiler ({names}) is found: install g++ (or set CXX)")


def _digest(compiler: tuple[str, ...], flags: tuple[str, ...]) -> str:
    """Names a build: source, compiler, flags, and the processor that -march=native means."""
    version = _run([*compiler, "--version"]).stdout
    words = " ".join((*compiler, *flags))
    parts = [SOURCE.read_text(), version, words, _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """The instruction sets of this machine: a home folder may be shared between several."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()}"


def _compile(compiler: tuple[str, ...], flags: tuple[str, ...], path: Path) -> None:
    """Compile aside, load, rename: nobody sees a half, or a library that does not load."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            _build_with_any_threading([*compiler, *flags], fresh)
            _load(fresh)
            checksum = fresh.with_suffix(".sha256")
            checksum.write_text(hashlib.sha256(fresh.read_bytes()).hexdigest())
            fresh.replace(path)
            checksum.replace(path.with_suffix(".sha256"))
    except OSError as error:
        raise NativeUnavailableError(
            f"cannot write the compiled kernels to {path.parent}: {error}. "
            "Set XDG_CACHE_HOME to a folder with space"
        ) from error


def _build_with_any_threading(command: list[str], output: Path) -> None:
    problem = ""
    for threading in THREADING:
        full = [*command, *threading, "-fPIC", "-shared", str(SOURCE), "-o", str(output)]
        done = _run(full)
        if not done.returncode and output.exists():
            return
        complaint = done.stderr.strip()[:500] or f"exit status {done.returncode}, no output"
        problem = f"{' '.join(full)} failed: {complaint}"
    raise NativeUnavailableError(f"{problem}. Set CXX to another compiler")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NativeUnavailableError(
            f"the C++ compiler {command[0]} cannot be run: {error}. Set CXX to another one"
        ) from error


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(
            f"the compiled kernels cannot be loaded: {error}. Set CXX to a C++ compiler (g++, not "
            "gcc)"
        ) from error
