"""Bodies for ranks: they train nothing, exchange numbers at each step, and misbehave on demand.

What to do stands in RUN/wishes.json: {"steps", "step_s", "at_step", "rank", "how"}; `how` happens
in the first try only, unless it ends in "_always".
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from scaling.distributed.rank import Seat
from scaling.runs.record import RunOutcome, Status
from scaling.storage.atomic import write_json


def count(seat: Seat) -> RunOutcome:
    """Sums what the ranks give at each step; the sum so far is the state that is checkpointed."""
    wishes = json.loads((seat.folder.path / "wishes.json").read_text())
    checkpoint = seat.folder.checkpoints_path / "state.json"
    checkpoint.parent.mkdir(exist_ok=True)
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "sum": 0.0}
    first, total = state["step"], state["sum"]
    seat.begin_at(first)
    write_json(seat.folder.path / f"pid_{seat.mesh.rank}.json", os.getpid())
    status, step = Status.done, first
    for step in range(first + 1, wishes["steps"] + 1):
        misbehave(seat, wishes, step)
        time.sleep(wishes.get("step_s", 0.01))
        given = torch.tensor([float(step * (seat.mesh.rank + 1))], dtype=torch.float64)
        total += float(seat.mesh.dp.sum_(seat.mesh.latent.sum_(given, "a"), "b"))
        if seat.mesh.leads:
            seat.witness.check()
            log(seat.folder.metrics_path, {"step": step, "tokens": step, "train/loss": total})
            write_json(checkpoint, {"step": step, "sum": total})
        if step < wishes["steps"] and seat.stop():
            status = Status.preempted
            break
    write_json(seat.folder.path / f"ended_{seat.mesh.rank}.json", step)
    return RunOutcome(status, {"steps": step, "sum": total}, {"resumed_at_step": first})


def log(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def misbehave(seat: Seat, wishes: dict[str, Any], step: int) -> None:
    how, first_try = wishes.get("how", ""), len(list(seat.folder.path.glob("attempts/*/*"))) == 1
    if step != wishes.get("at_step") or seat.mesh.rank != wishes["rank"]:
        return
    if not first_try and not how.endswith("_always"):
        return
    print(f"last words before {how}", file=sys.stderr, flush=True)
    match how.removesuffix("_always"):
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise ArithmeticError("a fault of this run")
        case "hang":
            time.sleep(1000)
        case "exit":
            os._exit(7)
