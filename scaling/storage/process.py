"""Which process on which machine: an identity that survives pid reuse and shared hostnames.

Also how a process ended, in words, and how one ends with its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TypedDict

import psutil

_PR_SET_PDEATHSIG = 1


class ProcessId(TypedDict):
    host: str
    machine: str
    """Names one boot of one kernel and one space of pids in it: a pid means nothing outside."""
    pid: int
    pid_started: float
    """When that pid began, in units of its own: tells a process from a later one of its pid."""


def this_process() -> ProcessId:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "pid_started": _started(pid) or 0.0,
    }


def is_here(process: ProcessId) -> bool:
    """Whether its pid means something to this process: same boot, same space of pids."""
    return process["host"] == socket.gethostname() and process["machine"] == _machine()


def is_known_dead(process: ProcessId) -> bool:
    """True only where this machine can tell: same boot, same pids, and the process is gone."""
    return is_here(process) and _started(process["pid"]) != process["pid_started"]


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, the process that started it, dies.

    Where there is no such kernel, whoever calls this must look at `os.getppid` from time to time.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def how_it_ended(returncode: int) -> str:
    """The exit of a process in words: "was killed by SIGSEGV"."""
    if returncode >= 0:
        return f"exited with code {returncode}"
    name = signal.Signals(-returncode).name
    hint = " (often: out of memory)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _machine() -> str:
    if not sys.platform.startswith("linux"):
        return f"boot-{psutil.boot_time():.0f}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> float | None:
    """When `pid` began, or None when no such process lives (a zombie does not)."""
    if not sys.platform.startswith("linux"):
        return psutil.Process(pid).create_time() if psutil.pid_exists(pid) else None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may hold anything; state and start time follow it.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else float(fields[19])
