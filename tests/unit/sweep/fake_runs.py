"""Plans and a runner for the scheduler's tests: they train nothing, and misbehave on demand."""

import argparse
import errno
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from scaling.errors import UserError
from scaling.runs.record import RunOutcome, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage import atomic
from scaling.storage.lease import Lease
from scaling.sweep.execute import ExecuteOptions, Summary, execute

HERE = Path(__file__).parent


@dataclass(frozen=True)
class FakePlan:
    run_id: str
    steps: int = 3
    step_s: float = 0.01
    misbehavior: str = ""
    """At step 2 of the first attempt: kill, segfault, exit, sigterm, full_disk, raise, bad_input
    (with _always: of each attempt); at the end: diverge,
    kill_after_record, remove_folder, damage_others."""
    meets: str = ""
    """Another run: this one goes on only when that one has started too."""
    estimated_s: float | None = 1.0
    estimated_memory_bytes: int = 1
    world_size: int = 1

    @property
    def title(self) -> str:
        return f"run {self.run_id}"

    @property
    def tokens(self) -> int:
        return self.steps * 100

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "autoencoder": {"n_latents": 64, "k": 4},
            "train": {"steps": self.steps, "batch_tokens": 100, "seed": 0},
            "estimated_s": self.estimated_s,
            "config": {"autoencoder": {"n_latents": 64, "k": 4}, "train": {"lr": 1e-3}},
            **asdict(self),
        }


def run(
    folder: RunFolder, lease: Lease, report: Callable[[dict], None], stop: Callable[[], bool]
) -> RunOutcome:
    """A runner: notes every step it "trains" in STEPS, and each start and end in STARTS."""
    plan, attempt = folder.read_plan(), lease.token
    checkpoint = folder.checkpoints_path / "step"
    checkpoint.parent.mkdir(exist_ok=True)
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    note(folder, "starts", f"{folder.run_id} {attempt} {time.monotonic()}")
    print("printed to stdout by a library", flush=True)
    if plan["meets"]:
        meet(folder, plan["meets"])
    with folder.metrics_logger(lease, resume_at_step=first) as logger:
        for step in range(first + 1, plan["steps"] + 1):
            misbehave(plan["misbehavior"], step, attempt)
            if stop():
                return RunOutcome(Status.preempted)
            time.sleep(plan["step_s"])
            tokens = step * 100
            row = {
                "step": step,
                "tokens": tokens,
                "train/loss": 1 / step,
                "perf/tokens_per_s": None,
            }
            logger.log(row)
            report(row)
            note(folder, "steps", f"{folder.run_id} {step}")
            aside = checkpoint.with_suffix(".new")
            aside.write_text(str(step))
            aside.replace(checkpoint)  # whole or not at all, whenever this process is killed
    note(folder, "ends", f"{folder.run_id} {attempt} {time.monotonic()}")
    if plan["misbehavior"] == "remove_folder":
        shutil.rmtree(folder.path)
    if plan["misbehavior"] == "damage_others":
        (folder.path.parent / "z" / "record.json").write_text("{")
    if plan["misbehavior"] == "kill_after_record":
        RunFolder.remove_checkpoints = lambda _folder: os.kill(os.getpid(), signal.SIGKILL)
    if plan["misbehavior"] == "diverge":
        return RunOutcome(Status.diverged, {"normalized_mse": float("nan")})
    return RunOutcome(Status.done, {"n_latents": 64, "k": 4, "normalized_mse": 0.25, "l0": 4.0})


def meet(folder: RunFolder, other: str, within_s: float = 60) -> None:
    """Wait for `other` to start; fail the run if it does not: nothing hangs on speed."""
    deadline = time.monotonic() + within_s
    while other not in {run for run, *_ in noted(SweepStore(folder.path.parent), "starts")}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{other} did not start beside {folder.run_id}")
        time.sleep(0.01)


def misbehave(how: str, step: int, attempt: int) -> None:
    what, _, always = how.partition("_always")
    if step != 2 or (attempt > 1 and "_always" not in how) or not what:
        return
    print(f"last words before {what}{always}", file=sys.stderr, flush=True)
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(7)
        case "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        case "full_disk":
            atomic._flush = refuse_to_flush
        case "raise":
            raise RuntimeError("a fault of this run")
        case "bad_input":
            raise UserError("train.lr=-1 is negative; set it above 0")


def refuse_to_flush(_path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def note(folder: RunFolder, name: str, line: str) -> None:
    with (folder.path.parent / f"{name}.txt").open("a") as file:
        file.write(line + "\n")


def noted(store: SweepStore, name: str) -> list[list[str]]:
    path = store.path / f"{name}.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def launch(
    store: SweepStore, plans: list[FakePlan], console: Console | None = None, **options: Any
) -> Summary:
    chosen = ExecuteOptions(**{"runner": "fake_runs:run", "workers": 2, **options})
    return execute(plans, store, chosen, console or Console(file=io.StringIO(), width=120))


def main() -> None:
    """A launch in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sweep_dir", type=Path)
    parser.add_argument("plans")
    parser.add_argument("--runner", default="fake_runs:run")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    plans = [FakePlan(**plan) for plan in json.loads(arguments.plans)]
    store, console = SweepStore(arguments.sweep_dir), Console(width=120)
    options = {"runner": arguments.runner, "workers": arguments.workers}
    summary = launch(store, plans, console, **options)
    raise SystemExit(summary.exit_code)


if __name__ == "__main__":
    main()
