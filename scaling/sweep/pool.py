"""Persistent worker processes, seen from the launch: start, give a run, listen, end.

Each worker has a session of its own, so a Ctrl-C in the terminal reaches the launch alone, which
then stops the workers in order. A worker ends when its stdin does: none outlives its launch.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from scaling.malloc import KEEP_PAGES
from scaling.runs.store import RunFolder
from scaling.worker import DEFAULT_RUNNER

LAST_WORDS_LINES = 30
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Event(NamedTuple):
    worker: Worker | None  # None: a signal to the launch itself
    body: dict[str, Any]
    """`event` is ready, started, progress, held, finished, died or signal."""


class Worker:
    """One worker process. Its events arrive in the queue given to it, the last one being `died`."""

    def __init__(
        self,
        events: SimpleQueue[Event],
        *,
        log_path: Path,
        environment: Mapping[str, str],
        devices: str | None = None,
        runner: str = DEFAULT_RUNNER,
    ) -> None:
        self.run_ids: list[str] = []
        """What it was given and has not told the end of; none when idle."""
        self.devices = devices
        """Its CUDA_VISIBLE_DEVICES, fixed as torch sees the GPUs it saw first."""
        self.is_ready = False
        self._log_path = log_path
        self._log_offset = 0
        if devices is not None:
            environment = {**environment, "CUDA_VISIBLE_DEVICES": devices}
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scaling.worker", "--runner", runner],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
                text=True,
            )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def give(self, *folders: RunFolder, lease_timeout_s: float) -> None:
        """Have it take up runs, by turns if several; one that just died answers with `died`."""
        self.run_ids = [folder.run_id for folder in folders]
        self._log_offset = self._log_path.stat().st_size
        paths = [str(folder.path.absolute()) for folder in folders]
        command = {"runs": paths, "lease_timeout_s": lease_timeout_s}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()

    def retire(self) -> None:
        """Let it end; nothing more can be given to it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def terminate(self) -> None:
        """Have its runs write a checkpoint and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it, and whatever it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.retire()

    def last_words(self) -> str:
        """The last lines it wrote to stderr since it was given its runs."""
        with self._log_path.open("rb") as log:
            log.seek(self._log_offset)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LAST_WORDS_LINES:])

    def _listen(self, events: SimpleQueue[Event]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # else it was killed in the middle of it
                    events.put(Event(self, json.loads(line)))
        events.put(Event(self, {"event": "died", "returncode": self._process.wait()}))


class Pool:
    """Up to `size` workers, started when first needed."""

    def __init__(
        self,
        size: int,
        *,
        logs_path: Path,
        threads: int,
        runner: str = DEFAULT_RUNNER,
    ) -> None:
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.workers: dict[int, Worker] = {}
        """By slot: 0 to size - 1."""
        self._size = size
        self._logs_path = logs_path
        self._threads = threads
        self._runner = runner

    @property
    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.run_ids]

    @property
    def has_idle(self) -> bool:
        """Whether a run can be given out."""
        return len(self.busy) < self._size

    def idle_worker(self, devices: str | None = None) -> Worker:
        """One without a run on these GPUs, newly started if need be, in place of one on others."""
        for slot in range(self._size):
            worker = self.workers.get(slot)
            if worker is not None and not worker.run_ids and worker.devices == devices:
                return worker
        spare = [slot for slot in range(self._size) if slot not in self.workers]
        idle = [slot for slot, worker in self.workers.items() if not worker.run_ids]
        slot = (spare + idle)[0]
        if slot in self.workers:
            self.forget(self.workers[slot])
        self.workers[slot] = self._start(slot, devices)
        return self.workers[slot]

    def forget(self, worker: Worker) -> None:
        """Free the slot of a worker that died, or let one that is idle end."""
        worker.retire()
        self.workers = {slot: kept for slot, kept in self.workers.items() if kept is not worker}

    def _start(self, slot: int, devices: str | None) -> Worker:
        environment = {name: str(self._threads) for name in THREAD_VARIABLES} | KEEP_PAGES
        name = f"worker-{socket.gethostname()}-{os.getpid()}-{slot}.log"
        return Worker(
            self.events,
            log_path=self._logs_path / name,
            environment=environment,
            devices=devices,
            runner=self._runner,
        )
