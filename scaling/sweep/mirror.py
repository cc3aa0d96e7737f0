"""The W&B mirror as a process beside a launch: started without waiting, ended within a bound.

Runs never speak to W&B. Whatever becomes of the mirror (no wandb, no network, a hang, a crash)
costs one line of warning at the end, and nothing before.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from scaling.runs.store import SweepStore

FINISH_WITHIN_S = 20.0
"""After the last run, for what is left to send."""
HURRY_WITHIN_S = 5.0
"""The same after an interrupt."""
_END_WITHIN_S = 2.0


@dataclass(frozen=True, kw_only=True)
class WandbOptions:
    project: str
    entity: str | None = None
    tags: Sequence[str] = field(default_factory=tuple)
    finish_within_s: float = FINISH_WITHIN_S


class Mirror:
    def __init__(self, store: SweepStore, options: WandbOptions) -> None:
        self._store = store
        self._options = options
        name = f"wandb-mirror-{socket.gethostname()}-{os.getpid()}.log"
        self._log_path: Path = store.logs_path / name
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scaling.runs.wandb_mirror", *self._arguments()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @classmethod
    def start(cls, store: SweepStore, options: WandbOptions) -> Mirror:
        store.path.mkdir(parents=True, exist_ok=True)
        return cls(store, options)

    def finish(self, *, hurry: bool = False) -> str | None:
        """Let it send what is left, then end it in any case. A warning unless all was sent."""
        within_s = self._options.finish_within_s
        if hurry:
            within_s = min(HURRY_WITHIN_S, within_s)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # the sign that no run will write any more
        try:
            returncode = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._end()
            return self._warning(f"was not through {within_s:g} s after the last run")
        return None if returncode == 0 else self._warning(f"gave up ({self._last_line()})")

    def _end(self) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_WITHIN_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # and what wandb has started
        self._process.wait()

    def _warning(self, what: str) -> str:
        return (
            f"W&B mirror {what}; the local records are complete. WANDB_MODE=offline keeps W&B's "
            f"files here, without an account. To send the rest: "
            f"python -m scaling.runs.wandb_mirror {' '.join(self._arguments()[:-1])}"
        )

    def _last_line(self) -> str:
        lines = self._log_path.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"

    def _arguments(self) -> list[str]:
        options = self._options
        arguments = [str(self._store.path), "--project", options.project]
        if options.entity is not None:
            arguments += ["--entity", options.entity]
        for tag in options.tags:
            arguments += ["--tag", tag]
        return [*arguments, "--follow"]
