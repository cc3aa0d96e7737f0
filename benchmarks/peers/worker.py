"""One contender in a process of its own: takes commands on stdin, answers on stdout, in JSON lines.

    python -m benchmarks.peers.worker '{"contender": ..., "module": ..., "shape": {...}, ...}'

Between commands it waits without using a core. See `benchmarks.peers.session` for the other end.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from benchmarks.peers.contender import Contender
from benchmarks.peers.data import initial_weights, make_batches
from benchmarks.peers.shapes import Shape

WAKE_S = 0.05
_PROC = Path("/proc/self")


def main() -> None:
    answers = _own_stdout()
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    shape = Shape(**job["shape"])
    batches = make_batches(shape)
    build = importlib.import_module(job["module"]).BUILDERS[job["contender"]]
    _finish_imports()
    before_bytes = _resident_bytes()
    contender = build(shape, initial_weights(shape, batches), batches)
    _reset_peak()
    ready = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "checksum": sum(float(batch.double().sum()) for batch in batches),
        "tiled": getattr(contender, "tiled", None),
        "before_bytes": before_bytes,
    }
    _answer(answers, ready)
    for line in sys.stdin:
        _answer(answers, _obey(json.loads(line), contender, batches))


def _own_stdout() -> IO[str]:
    """The real stdout, for answers alone: whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _finish_imports() -> None:
    """Torch imports its compiler, some 100 MB, with the first optimizer; some packages had it."""
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.sum().backward()
    torch.optim.Adam([parameter]).step()


def _answer(answers: IO[str], content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def _obey(command: dict[str, Any], contender: Contender, batches: list[Tensor]) -> dict[str, Any]:
    match command["do"]:
        case "score":
            score = contender.score(batches[0])
            return {} if score is None else score._asdict()
        case "steps":
            first, n_steps = command["first"], command["n_steps"]
            _wake_threads()
            chosen = [batches[(first + i) % len(batches)] for i in range(n_steps)]
            times = [_timed_step(contender, batch) for batch in chosen]
            return {"wall_s": [t[0] for t in times], "cpu_s": [t[1] for t in times]}
        case "memory":
            return {"peak_bytes": _peak_bytes()}
        case unknown:
            raise ValueError(f"unknown command {unknown}")


def _wake_threads() -> None:
    """Run parallel work for a moment: threads that slept often wake on one core, and until the
    scheduler parts them a step takes milliseconds more than it does in the middle of a run."""
    matrix, until_s = torch.ones(256, 256), time.perf_counter() + WAKE_S
    while time.perf_counter() < until_s:
        _ = matrix @ matrix


def _timed_step(contender: Contender, batch: Tensor) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of all threads of this process."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    contender.step(batch)
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def _resident_bytes() -> int | None:
    return _status_bytes("VmRSS")


def _peak_bytes() -> int | None:
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int | None:
    """A field of /proc/self/status; None where the system has no such file."""
    with suppress(OSError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def _reset_peak() -> None:
    # What importing and building took is not what training takes. Some containers forbid it.
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5")


if __name__ == "__main__":
    main()
