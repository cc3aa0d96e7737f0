"""A sweep seen from outside: `python -m scaling.status RUNS_DIR/SWEEP [--watch]`.

Reads files only, so it works on any host that sees them, while others run or after a crash.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from scaling.errors import UserError
from scaling.runs.record import FINAL, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.sweep.progress import duration
from scaling.sweep.table import RunRow, runs_table

_WATCH_EVERY_S = 2.0
_ORDER = ("done", "running", "diverged", "failed", "preempted", "abandoned", "planned")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep_dir", type=Path)
    parser.add_argument("--watch", action="store_true", help="until every run has a result")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        store = _open(options.sweep_dir)
        if options.watch:
            _watch(store, console)
        else:
            console.print(picture(_look_at(store)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _open(sweep_dir: Path) -> SweepStore:
    store = SweepStore(sweep_dir.absolute())
    if not store.folders():
        raise UserError(
            f"{sweep_dir} holds no runs; give the folder of one sweep, RUNS_DIR/SWEEP (the "
            "default of a sweep named demo is runs/demo)"
        )
    return store


def _look_at(store: SweepStore) -> list[Sighting]:
    return [Sighting.of(folder) for folder in store.folders()]


def _watch(store: SweepStore, console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            sightings = _look_at(store)
            live.update(picture(sightings), refresh=True)
            if all(sighting.is_final for sighting in sightings):
                return
            time.sleep(_WATCH_EVERY_S)


@dataclass(frozen=True)
class Sighting:
    """One run as its files show it now."""

    row: RunRow
    holder: dict[str, Any] | None
    tokens: int
    """Trained on so far, by the last row of metrics.jsonl."""
    estimated_s: float | None

    @classmethod
    def of(cls, folder: RunFolder) -> Sighting:
        # The holder first: a run that ends in between then shows as ended, not as abandoned.
        holder = folder.holder()
        row, metrics = RunRow.of(folder), folder.metrics()
        tokens = metrics[-1]["tokens"] if metrics else 0
        return cls(row, holder, tokens, folder.read_plan().get("estimated_s"))

    @property
    def is_final(self) -> bool:
        return self.row.status in FINAL

    @property
    def share_done(self) -> float:
        return 1.0 if self.is_final else self.tokens / (self.row.tokens or math.inf)

    def line(self) -> str | None:
        """What the table cannot say; None when there is nothing to add."""
        if self.holder is not None:
            return f"{self.row.run_id}  at {self.share_done:.0%}  {_whose(self.holder)}"
        if self.row.status is Status.running:
            return (
                f"{self.row.run_id}  at {self.share_done:.0%}  nobody works on it: its process "
                "ended without a word; the next launch goes on from its last checkpoint"
            )
        return f"{self.row.run_id}  {self.row.error}" if self.row.error else None


def picture(sightings: Sequence[Sighting]) -> Group:
    """Counts, table and remarks."""
    remarks = [line for sighting in sightings if (line := sighting.line())]
    return Group(
        Text(counts(sightings)),
        runs_table([sighting.row for sighting in sightings]),
        *map(Text, remarks),
    )


def counts(sightings: Sequence[Sighting]) -> str:
    """For people: "6 runs: 3 done, 1 running, 2 planned; about 40 s left"."""
    by_status = Counter(_seen_status(sighting) for sighting in sightings)
    parts = ", ".join(f"{by_status[name]} {name}" for name in _ORDER if by_status[name])
    left_s = seconds_left(sightings)
    left = "" if left_s is None else f"; about {duration(left_s)} left"
    return f"{len(sightings)} runs: {parts}{left}"


def seconds_left(sightings: Sequence[Sighting]) -> float | None:
    """From the estimates, corrected by how the finished runs compared with theirs.

    None when nobody works on the sweep or there is no estimate.
    """
    workers = sum(sighting.holder is not None for sighting in sightings)
    if not workers or any(sighting.estimated_s is None for sighting in sightings):
        return None
    done = [s for s in sightings if s.row.status is Status.done and "wall_s" in s.row.cost]
    taken_s = sum(s.row.cost["wall_s"] for s in done)
    foreseen_s = sum(s.estimated_s or 0.0 for s in done)
    correction = taken_s / foreseen_s if foreseen_s else 1.0
    left_s = sum((s.estimated_s or 0.0) * (1 - s.share_done) for s in sightings)
    return left_s * correction / workers


def _seen_status(sighting: Sighting) -> str:
    if sighting.holder is not None:
        return "running"
    return "abandoned" if sighting.row.status is Status.running else str(sighting.row.status)


def _whose(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "held, by whom its damaged lease does not tell"
    return (
        f"on {holder['host']}, pid {holder['pid']}, since {holder['acquired_at']}, "
        f"last sign of life {holder['age_s']:.0f} s ago"
    )


if __name__ == "__main__":
    sys.exit(main())
