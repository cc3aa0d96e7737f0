"""Copies the local files of a sweep to Weights & Biases: `python -m scaling.runs.wandb_mirror DIR`.

The only module that imports wandb, and always a process of its own: it reads what the runs have
written, so it can be late, fail or be absent without a run noticing. What was sent is noted in
each run's wandb.json once W&B has it; the next call goes on from there. A mirror killed in between
sends some rows again, under the same step, which W&B takes for the same row.

Online or offline by WANDB_MODE; the files of W&B itself go to RUNS_DIR/SWEEP/wandb/.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from scaling.runs.evaluation_columns import EVALUATION_IN_SUMMARY, evaluation_values
from scaling.runs.record import FINAL, Record, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.atomic import read_json, write_json
from scaling.storage.lease import Lease

POLL_S = 2.0
GAVE_UP = 3
"""Exit code when W&B is absent or refuses; the reason is the last line of stderr."""
_LEASE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Cursor:
    """How much of a run W&B has: the rows of metrics.jsonl up to one, and the last summary, of
    which record and which evaluation.json (its digest)."""

    step: int = -1
    rows_of_step: int = 0
    status: str | None = None
    finished_at: str | None = None
    evaluation: str | None = None

    @classmethod
    def of(cls, folder: RunFolder) -> Cursor:
        path = _cursor_path(folder)
        return cls(**read_json(path)) if path.exists() else cls()

    def rows_after(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """By step, not by line: a run that resumed has written some rows again."""
        new, seen = [], 0
        for row in rows:
            seen += row["step"] == self.step
            again = row["step"] == self.step and seen <= self.rows_of_step
            if row["step"] >= self.step and not again:
                new.append(row)
        return new

    def after(self, rows: Sequence[dict[str, Any]]) -> Cursor:
        """Past these rows too."""
        if not rows:
            return self
        last = rows[-1]["step"]
        n_last = sum(row["step"] == last for row in rows)
        before = self.rows_of_step if last == self.step else 0
        return replace(self, step=last, rows_of_step=before + n_last)

    def lacks(self, folder: RunFolder) -> bool:
        """Whether the run has an end, or rows before it, that W&B was not confirmed to have."""
        record = folder.read_record()
        if record.status in (Status.planned, Status.running):
            return False
        return bool(self.rows_after(folder.metrics())) or self.with_end_of(record, folder) != self

    def with_end_of(self, record: Record, folder: RunFolder) -> Cursor:
        """Past this end of an attempt and its evaluation too; unchanged while one goes on."""
        if record.status is Status.running:
            return self
        finished_at = record.cost.get("finished_at")
        return replace(
            self,
            status=str(record.status),
            finished_at=finished_at,
            evaluation=_digest(folder.evaluation_path),
        )


class WandbLogger:
    """One run of W&B: id = run id, group = sweep, x axis = tokens. A `Logger`."""

    def __init__(self, folder: RunFolder, options: argparse.Namespace) -> None:
        import wandb

        plan = folder.read_plan()
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            id=folder.run_id,
            name=plan.get("title"),
            group=folder.sweep,
            tags=options.tag,
            config=plan.get("config", plan),
            dir=str(folder.path.parent),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                # The mirror's own load and packages say nothing about the run.
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._run.define_metric("tokens", hidden=True)
        self._run.define_metric("*", step_metric="tokens")
        self._steps_there = self._run.step  # of an online run that is resumed

    def log(self, row: Mapping[str, Any]) -> None:
        if row["step"] >= self._steps_there:
            self._run.log(dict(row), step=row["step"])

    def summarize(self, record: Record, evaluation: Mapping[str, float | str]) -> None:
        cost = {name: _flat(value) for name, value in record.cost.items()}
        measured = {f"{EVALUATION_IN_SUMMARY}{name}": value for name, value in evaluation.items()}
        row = {**record.result, **cost, **measured, "status": str(record.status)}
        self._run.summary.update(row)

    def close(self, exit_code: int = 0) -> None:
        """Returns once W&B has everything (offline: once it is on the disk)."""
        self._run.finish(exit_code=exit_code)


class Mirrored:
    """A run and its copy: open while there is something to send."""

    def __init__(self, folder: RunFolder, options: argparse.Namespace) -> None:
        self.folder = folder
        self._options = options
        self._sent = Cursor.of(folder)
        self._logger: WandbLogger | None = None
        self._seen: list[tuple[int, int]] = []

    def update(self) -> None:
        """Send what is new; close the copy of a run that has ended."""
        folder = self.folder
        seen = _fingerprints(folder.record_path, folder.metrics_path, folder.evaluation_path)
        if seen != self._seen:
            self._seen = seen
            self._send_news()

    def _send_news(self) -> None:
        record = self.folder.read_record()
        if record.status is Status.planned:
            return
        # The record first: once it tells of an end, the metrics are complete.
        new = self._sent.rows_after(self.folder.metrics())
        sent = self._sent.after(new).with_end_of(record, self.folder)
        if sent == self._sent:
            return
        self._logger = self._logger or WandbLogger(self.folder, self._options)
        for row in new:
            self._logger.log(row)
        self._sent = sent
        if record.status is not Status.running:
            self._logger.summarize(record, _evaluation(self.folder))
            self.close(exit_code=0 if record.status in FINAL else 1)

    def close(self, exit_code: int = 0) -> None:
        if self._logger is not None:
            self._logger.close(exit_code)
            self._logger = None
            write_json(_cursor_path(self.folder), asdict(self._sent))


class SweepMirror:
    """All runs of a sweep; those that appear later too."""

    def __init__(self, store: SweepStore, options: argparse.Namespace) -> None:
        self._store = store
        self._options = options
        self._runs: dict[str, Mirrored] = {}

    def update(self) -> None:
        for folder in self._store.folders():
            if folder.run_id not in self._runs:
                self._runs[folder.run_id] = Mirrored(folder, self._options)
            self._runs[folder.run_id].update()

    def close(self) -> None:
        for run in self._runs.values():
            run.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep_dir", type=Path)
    parser.add_argument("--project", default="sae-scaling")
    parser.add_argument("--entity")
    parser.add_argument("--tag", action="append", default=[])
    parser.add_argument("--follow", action="store_true", help="go on until stdin ends")
    options = parser.parse_args(arguments)
    if not options.sweep_dir.is_dir():
        print(f"{options.sweep_dir} is not a folder: give RUNS_DIR/SWEEP", file=sys.stderr)
        return 2
    os.nice(10)  # the runs come first
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(GAVE_UP))
    try:
        _mirror(options)
    except Exception as error:
        # Any failure of a foreign library ends here; it must not look like a fault of the runs.
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return GAVE_UP
    return 0


def _mirror(options: argparse.Namespace) -> None:
    """One pass, or passes until stdin ends."""
    lease = _only_mirror(options)
    if lease is None:
        _warn_of_unsent(SweepStore(options.sweep_dir))
        return
    mirror = SweepMirror(SweepStore(options.sweep_dir), options)
    with lease:
        try:
            mirror.update()
            while options.follow and _stdin_open_after(POLL_S):
                mirror.update()
            mirror.update()
        finally:
            mirror.close()


def _only_mirror(options: argparse.Namespace) -> Lease | None:
    """The right to mirror this sweep; None when another launch's mirror has it to our end.

    That one sees our runs too, and goes on until its own launch is through.
    """
    while True:
        lease = Lease.acquire(options.sweep_dir / "wandb", timeout_s=_LEASE_TIMEOUT_S)
        if lease is not None or not options.follow or not _stdin_open_after(POLL_S):
            return lease


def _warn_of_unsent(store: SweepStore) -> None:
    """Raises `RuntimeError` naming how much the other mirror, slow or stuck, has not sent yet."""
    unsent = sum(Cursor.of(folder).lacks(folder) for folder in store.folders())
    if unsent:
        raise RuntimeError(f"another launch's mirror is not through; runs yet to send: {unsent}")


def _stdin_open_after(wait_s: float) -> bool:
    """True after the wait; False as soon as stdin ends."""
    return not select.select([sys.stdin], [], [], wait_s)[0]


def _fingerprints(*paths: Path) -> list[tuple[int, int]]:
    """Differ when a file does: appended to, or replaced."""
    stats = [path.stat() for path in paths if path.exists()]
    return [(stat.st_mtime_ns, stat.st_size) for stat in stats]


def _evaluation(folder: RunFolder) -> dict[str, float | str]:
    """What there is of it: a damaged file is no reason to keep back the run."""
    with suppress(ValueError, RecursionError):
        return evaluation_values(_content(folder.evaluation_path) or b"{}")
    return {}


def _flat(value: Any) -> Any:
    """Objects and lists as JSON text: servers take them apart, or leave them out of a summary."""
    return json.dumps(value) if isinstance(value, dict | list) else value


def _digest(path: Path) -> str | None:
    """Of a file's content; None where there is none."""
    content = _content(path)
    return None if content is None else sha256(content).hexdigest()[:12]


def _content(path: Path) -> bytes | None:
    """None where there is no file, or none that can be read."""
    with suppress(OSError):
        return path.read_bytes()
    return None


def _cursor_path(folder: RunFolder) -> Path:
    return folder.path / "wandb.json"


if __name__ == "__main__":
    sys.exit(main())
