"""Runs of several n and k from one process, against the same runs each for itself.

    python -m benchmarks.multiplex embedded [--n 256,512,1024 --k 8,16,32,64] [--tokens 102400]
        [--workers 1 --threads 2] [--data-dir data] [--out FILE.md] [KEY=VALUE ...]

The first word is the group `activations`. Both sweeps are launched like any other, with the same
workers and threads: their time is from the first worker's start to the last record, initialization,
evaluations and checkpoints included, what is harvested before not. Memory is that of all workers
at once, resident, looked at 50 times a second, so it counts mapped activations as well; planned is
what dry_run says. Prints a table, and whether the result fields are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from scaling.hardware import fingerprint
from scaling.plan import RunPlan
from scaling.runs.record import Record, Status
from scaling.runs.store import SweepStore
from scaling.sweep.groups import each_alone
from scaling.sweep.packing import Packing

ROOT = Path(__file__).parents[1]
GIB = 2**30
SAMPLE_EVERY_S = 0.02


@dataclass(frozen=True)
class Measured:
    plans: list[RunPlan]
    records: dict[str, Record]
    wall_s: float
    memory_bytes: int
    """Of all workers at once, at most."""

    @property
    def tokens_per_s(self) -> float:
        """Of all runs, summed."""
        return sum(record.result["tokens"] for record in self.records.values()) / self.wall_s

    @property
    def busy_s(self) -> float:
        """In the training loops, by the runs' own clocks."""
        return sum(record.cost["train_s"] for record in self.records.values())


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        solo = _launch(options, here, "solo", "launcher.multiplex=false")
        _compute_alike(solo, SweepStore(here / "multiplexed"))
        together = _launch(options, here, "multiplexed", "launcher.multiplex=true")
    table = _table(options, solo, together)
    print(table)
    if options.out is not None:
        options.out.write_text(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("activations", help="the config group: planted, embedded, store, hf")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--n", default="256,512,1024")
    parser.add_argument("--k", default="8,16,32,64")
    parser.add_argument("--tokens", type=int, default=102_400)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, help="a Markdown file; printed in any case")
    return parser.parse_intermixed_args()


def _launch(options: argparse.Namespace, folder: Path, name: str, how: str) -> Measured:
    """Launch a sweep of its own, and watch its workers' memory."""
    store = SweepStore(folder / name)
    command = [sys.executable, str(ROOT / "launch.py"), "-m", *_keys(options), how]
    command += [f"runs_dir={folder}", f"sweep_name={name}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watch = _Watch(process.pid)
    if process.wait():
        raise SystemExit(f"the sweep {name} failed; its command: {' '.join(command)}")
    most_bytes = watch.end()
    plans = [RunPlan.from_json(run.read_plan()) for run in store.folders()]
    records = {run.run_id: run.read_record() for run in store.folders()}
    (note,) = map(json.loads, (store.path / "launches.jsonl").read_text().splitlines())
    return Measured(plans, records, note["train_s"], most_bytes)


def _compute_alike(solo: Measured, store: SweepStore) -> None:
    """Have the second sweep's runs begun as the first's were: the encoder's matmul is chosen by a
    measurement at a run's first launch, and last bits depend on it."""
    for plan in solo.plans:
        store.folder(plan.run_id).prepare(plan.to_json())


def _keys(options: argparse.Namespace) -> list[str]:
    """What both sweeps have in common, later words before earlier ones."""
    return [
        f"activations={options.activations}",
        f"autoencoder.n_latents={options.n}",
        f"autoencoder.k={options.k}",
        "autoencoder.dead_after_tokens=20_000",
        f"train.tokens={options.tokens}",
        f"launcher.workers={options.workers}",
        f"launcher.threads={options.threads}",
        f"data_dir={options.data_dir}",
        *options.overrides,
    ]


class _Watch:
    """The memory of the workers of a launch."""

    def __init__(self, pid: int) -> None:
        self._launch = psutil.Process(pid)
        self._most_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._most_bytes

    def _look(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            with suppress(psutil.NoSuchProcess):
                sizes = [_worker_bytes(child) for child in self._launch.children()]
                self._most_bytes = max(self._most_bytes, sum(sizes))


def _worker_bytes(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        if "scaling.worker" in process.cmdline():
            return process.memory_info().rss
    return 0


def _table(options: argparse.Namespace, solo: Measured, together: Measured) -> str:
    plans, workers = solo.plans, options.workers
    planned = {
        "solo": each_alone(plans),
        "multiplexed": Packing.here(plans, workers).groups(plans),
    }
    lines = [
        f"{len(plans)} runs (n = {options.n}; k = {options.k}) of {options.tokens:,} tokens from "
        f"activations={options.activations} {' '.join(options.overrides)}, {workers} workers of "
        f"{options.threads} threads, {fingerprint('cpu', 'cpu')}",
        "",
        "| | runs in a process | wall s | tokens/s of all runs | in training loops s | planned GiB "
        "| measured GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measured in (("solo", solo), ("multiplexed", together)):
        groups = sorted(planned[name], key=lambda group: group.memory_bytes)[-workers:]
        lines.append(
            f"| {name} | {_together(measured)} | {measured.wall_s:.1f} | "
            f"{measured.tokens_per_s:,.0f} | {measured.busy_s:.1f} | "
            f"{sum(group.memory_bytes for group in groups) / GIB:.2f} | "
            f"{measured.memory_bytes / GIB:.2f} |"
        )
    ratio = together.tokens_per_s / solo.tokens_per_s
    lines += ["", f"Multiplexed is {ratio:.2f} times as fast. {_comparison(solo, together)}", ""]
    return "\n".join(lines)


def _together(measured: Measured) -> str:
    counts = {record.cost["multiplexed"] for record in measured.records.values()}
    return " or ".join(map(str, sorted(counts)))


def _comparison(solo: Measured, together: Measured) -> str:
    """In words: whether every run came to the same."""
    fields = {
        f"{run_id} {field}"
        for run_id, record in solo.records.items()
        for field, value in record.result.items()
        if together.records[run_id].result.get(field) != value
    }
    done = all(
        record.status is Status.done
        for measured in (solo, together)
        for record in measured.records.values()
    )
    if not done:
        return "Not all runs are done."
    n_fields = sum(len(record.result) for record in solo.records.values())
    if not fields:
        return f"All {n_fields} result fields of {len(solo.records)} runs are identical."
    return f"{len(fields)} of {n_fields} result fields differ: {', '.join(sorted(fields))}."


if __name__ == "__main__":
    main()
