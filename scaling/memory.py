"""How much memory this process may use: the machine's, or its control group's if less."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def limit_bytes() -> int:
    """Total memory, never more than a container's limit."""
    limits = [int(text) for path in _CGROUP_LIMITS if (text := _read(path)).isdigit()]
    return min([psutil.virtual_memory().total, *limits])


def gpu_bytes() -> int:
    """Memory of the GPU that a process uses by default, all of it."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
