"""debug.profile: a torch profiler trace of a few steps, as profile.json in the run's folder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function

SKIPPED_STEPS = 5
"""Warm-up: allocator and kernel choices settle."""
PROFILED_STEPS = 5


class StepProfiler:
    """Does nothing unless enabled. Open the trace in chrome://tracing or ui.perfetto.dev."""

    def __init__(self, enabled: bool, folder: Path, first_step: int) -> None:
        self.path = folder / "profile.json"
        self.start = first_step + SKIPPED_STEPS
        self.stop = self.start + PROFILED_STEPS
        self.enabled = enabled
        self.profile: profile | None = None

    def step(self, step: int) -> AbstractContextManager[object]:
        """Around one step."""
        if not self.enabled:
            return nullcontext()
        if step == self.start:
            self.profile = profile(activities=_activities())
            self.profile.start()
        if step == self.stop:
            self._finish()
        return record_function(f"step {step}")

    def _finish(self) -> None:
        if self.profile is not None:
            self.profile.stop()
            self.profile.export_chrome_trace(str(self.path))
            self.profile = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish()


def _activities() -> list[ProfilerActivity]:
    cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return [ProfilerActivity.CPU, *cuda]
