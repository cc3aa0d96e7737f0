"""The other end of the workers: processes that are asked one at a time, so that none disturbs.

All contenders of a group are alive together and take turns: whatever the machine does meanwhile
(frequency, neighbors) meets all of them alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from enum import StrEnum, auto
from pathlib import Path
from typing import Any

from benchmarks.peers.contenders import Entry, Kind
from benchmarks.peers.install import python_of
from benchmarks.peers.shapes import Shape
from scaling.malloc import KEEP_PAGES

ROOT = Path(__file__).parents[2]
SETTLE_S = 0.02
"""Rest after a turn: OpenMP's threads spin for a while after their last parallel region."""


class KeepPages(StrEnum):
    """Whose allocator is told to keep freed pages (scaling/malloc.py), as our own runs do."""

    all = auto()
    """The kindest comparison for packages that make and free large tensors in each step."""
    ours = auto()
    """Each as it is shipped."""
    none = auto()


@dataclass(frozen=True, kw_only=True)
class Settings:
    envs: Path
    threads: int
    rounds: int
    warm_up_rounds: int
    memory_bytes: int
    keep_pages: KeepPages

    def environment(self, kind: Kind) -> dict[str, str]:
        """Of a worker; the same for all but for the allocator, if so asked."""
        keeps = self.keep_pages is KeepPages.all or (
            self.keep_pages is KeepPages.ours and kind is not Kind.peer
        )
        return {
            **os.environ,
            **(KEEP_PAGES if keeps else {}),
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "CUDA_VISIBLE_DEVICES": "",
            "SPARSIFY_DISABLE_TRITON": "1",  # its Triton decoder has no CPU path
            "WANDB_MODE": "disabled",
            "HF_HUB_OFFLINE": "1",
        }


@dataclass(kw_only=True)
class Measured:
    """All that is known of one contender at one shape; times are of single steps."""

    name: str
    kind: Kind
    ready: dict[str, Any]
    before: dict[str, float]
    """Score on the first batch before training; empty for a floor."""
    after: dict[str, float] = field(default_factory=dict)
    turns_wall_s: list[list[float]] = field(default_factory=list)
    turns_cpu_s: list[list[float]] = field(default_factory=list)
    peak_bytes: int | None = None


class Worker:
    """A running contender. Its stderr is shown only if it fails."""

    def __init__(self, entry: Entry, shape: Shape, settings: Settings) -> None:
        python = sys.executable if entry.env is None else python_of(entry.env, settings.envs)
        job = {
            "contender": entry.name,
            "module": entry.module,
            "shape": asdict(shape),
            "threads": settings.threads,
        }
        self.name = entry.name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__
        self.process = subprocess.Popen(
            [str(python), "-m", "benchmarks.peers.worker", json.dumps(job)],
            cwd=ROOT,
            env=settings.environment(entry.kind),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed:\n{self._complaint()}")
        return json.loads(line)

    def _complaint(self) -> str:
        """The last traceback; only its beginning, as torch's messages can be long."""
        self.log.seek(0)
        text = self.log.read()
        return text[max(text.rfind("Traceback"), 0) :][:4000]

    def ask(self, do: str, **arguments: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        return self.answer()


def measure(group: list[Entry], shape: Shape, settings: Settings) -> list[Measured]:
    """All rounds of a group of contenders at one shape."""
    with ExitStack() as stack:
        workers: list[Worker] = []
        found: list[Measured] = []
        for entry in group:
            worker = stack.enter_context(Worker(entry, shape, settings))
            ready = worker.answer()
            workers.append(worker)
            before = worker.ask("score")
            found.append(Measured(name=entry.name, kind=entry.kind, ready=ready, before=before))
        _take_turns(workers, found, shape, settings)
        for worker, measured in zip(workers, found, strict=True):
            measured.peak_bytes = worker.ask("memory")["peak_bytes"]
            measured.after = worker.ask("score")
        return found


def _take_turns(
    workers: list[Worker], found: list[Measured], shape: Shape, settings: Settings
) -> None:
    for turn in range(settings.warm_up_rounds + settings.rounds):
        first = turn % len(workers)
        for i in [*range(first, len(workers)), *range(first)]:
            steps = shape.steps_per_turn
            times = workers[i].ask("steps", first=turn * steps, n_steps=steps)
            time.sleep(SETTLE_S)
            if turn >= settings.warm_up_rounds:
                found[i].turns_wall_s.append(times["wall_s"])
                found[i].turns_cpu_s.append(times["cpu_s"])
