"""What is measured of the machine, also where the system allows less."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scaling import hardware


def test_a_system_that_refuses_the_reset_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_CLEAR_REFS", Path("/proc/self/no_such_file"))
    hardware.reset_peak_memory("cpu")
    assert hardware.peak_memory_bytes("cpu") > 0


def test_a_gpu_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert [hardware.device_name(device) for device in ("cuda", "cpu")] == ["NVIDIA H100", "cpu"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_kept_pages_are_faulted_in_once() -> None:
    script = """
import ctypes, resource, sys
from scaling.malloc import keep_pages
if sys.argv[1] == "kept":
    keep_pages()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use():
    block = ctypes.c_void_p(libc.malloc(64_000_000))
    ctypes.memset(block, 1, 64_000_000)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True,
                           check=True).stdout)
        for how in ("kept", "not")
    )  # fmt: skip
    # The kernel may map huge pages: few faults then, yet more than none.
    assert kept < given_back / 4
