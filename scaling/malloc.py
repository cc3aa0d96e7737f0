"""Settings of glibc's allocator for processes that compute."""

from __future__ import annotations

import ctypes
from contextlib import suppress

KEEP_PAGES = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_TOP_PAD_": "100000000",
}
"""Tensors of megabytes come and go every step: have glibc keep their pages instead of returning
them to the kernel and faulting them in again (25% of a harvest, 5 to 10% of a training step). An
environment for child processes; without glibc it means nothing."""

_MALLOPT = {-3: 1_000_000_000, -1: 1_000_000_000, -2: 100_000_000}
"""The same three as numbers: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h."""


def keep_pages() -> None:
    """The same for this process, from here on."""
    with suppress(OSError, AttributeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)
