"""What this machine is and can do: fingerprint, matmul rate, peak memory."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from scaling.kernels.cpu import native_name
from scaling.runs.provenance import cpu_model

_CLEAR_REFS = Path("/proc/self/clear_refs")


@cache
def fingerprint(device: str, kernels: str) -> str:
    """Names what the bits of a result depend on beyond the plan: processor and libraries."""
    native = f"; {native_name()}" if kernels == "cpu" else ""
    chip = torch.cuda.get_device_name() if device == "cuda" else cpu_model()
    return f"{chip}; torch {torch.__version__}; {torch.backends.cpu.get_cpu_capability()}{native}"


@cache
def matmul_flops_per_s(device: str) -> float:
    """Measured float32 matmul rate with the present thread settings: perf/mfu's denominator."""
    a, b = torch.ones(1024, 1024, device=device), torch.ones(1024, 1024, device=device)
    _ = a @ b
    times_s = [_timed_matmul(a, b) for _ in range(5)]
    return 2 * 1024**3 / min(times_s)


def _timed_matmul(a: torch.Tensor, b: torch.Tensor) -> float:
    started_s = time.perf_counter()
    product = a @ b
    _ = float(product[0, 0])  # waits for an asynchronous device
    return time.perf_counter() - started_s


def device_name(device: str) -> str:
    """For people: "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def reset_peak_memory(device: str) -> None:
    """Start a new measurement, so that a process that trains many runs tells them apart.

    Where the system does not let it (some containers), the peak covers the process's whole life.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        # "5" resets the peak resident size (proc(5), clear_refs).
        with suppress(OSError):
            _CLEAR_REFS.write_text("5")


def peak_memory_bytes(device: str) -> int:
    """Peak since the reset: allocated on the GPU, resident in the process on CPU.

    On CPU an upper bound of what a run needs: it counts the pages of memory-mapped activations and
    what the allocator keeps of earlier runs. Off Linux the process's peak cannot be reset and
    covers its whole life.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
