"""How much memory this process may use: the machine's, or its control group's if less."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def limit_bytes() -> int:
    """Total memory, never more than a container's limit."""
    limits = [int(text) for path in _CGROUP_LIMITS if (text := _read(path)).isdigit()]
    return min([psutil.virtual_memory().total, *limits])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
