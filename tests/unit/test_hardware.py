"""What is measured of the machine, also where the system allows less."""

from __future__ import annotations

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
