"""Which run goes to which worker: longest first, as memory allows; deaths are retried."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from queue import Empty
from typing import Any, Protocol

import psutil
from rich.console import Console

from scaling.errors import UserError
from scaling.runs.provenance import now
from scaling.runs.record import FINAL, Record, RunError, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.lease import Lease
from scaling.storage.process import how_it_ended
from scaling.sweep.interrupt import Interrupts
from scaling.sweep.mirror import WandbOptions
from scaling.sweep.pool import Event, Pool, Worker
from scaling.sweep.progress import Job, Tally, display_on
from scaling.sweep.slots import Slots
from scaling.sweep.table import RunRow
from scaling.worker import DEFAULT_RUNNER

STOP_WITHIN_S = 15.0
"""A run told to stop has this long to write its checkpoint."""
_POLL_S = 0.25
_LOOK_AT_DEFERRED_EVERY_S = 1.0
_RETIRE_WITHIN_S = 5.0
_FAILED_STARTS = 3
_STOPS = 10
"""So often in one launch is a run taken up again whose worker others told to stop."""


class Plan(Job, Protocol):
    """What scheduling needs to know of a run; `scaling.plan.RunPlan` is one."""

    @property
    def estimated_memory_bytes(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class ExecuteOptions:
    workers: int = 1
    """Runs at a time."""
    slots: int | None = None
    """Ranks at a time, over all runs; null = as many as `workers`."""
    threads: int = 1
    """CPU threads of each rank."""
    retries: int = 1
    """Further attempts for a run whose process died."""
    lease_timeout_s: float = 60.0
    memory_bytes: int | None = None
    """For all runs together; null = what is available when the launch starts."""
    devices: Sequence[str] | None = None
    """GPUs of the slots, in turn."""
    wandb: WandbOptions | None = None
    runner: str = DEFAULT_RUNNER


class WorkersUnusable(UserError):
    """Workers die before their first run."""


class Schedule:
    """Which run goes to which worker, until all are settled or the user stops it."""

    def __init__(
        self,
        plans: Sequence[Plan],
        before: dict[str, Record],
        store: SweepStore,
        options: ExecuteOptions,
        console: Console,
        interrupts: Interrupts,
    ) -> None:
        self._plans = {plan.run_id: plan for plan in plans}
        self._before = before
        self._store = store
        self._options = options
        self._interrupts = interrupts
        self._waiting = sorted(self._plans, key=self._duration, reverse=True)  # longest first
        self._deferred: list[str] = []
        self._looked_at_deferred = 0.0
        self._deaths: Counter[str] = Counter()
        self._stops: Counter[str] = Counter()
        self._failed_starts = 0
        self._memory_bytes = options.memory_bytes or psutil.virtual_memory().available
        self._tally = Tally(plans, n_workers=options.workers)
        self._display = display_on(console)
        self._pool = Pool(
            options.workers,
            logs_path=store.logs_path,
            threads=options.threads,
            runner=options.runner,
        )
        self._slots = Slots(options.slots or options.workers, options.devices)
        interrupts.wake = lambda: self._pool.events.put(Event(None, {"event": "signal"}))

    def run(self) -> None:
        with self._display:
            try:
                while not self._interrupts.count and (self._waiting or self._in_hand()):
                    self._assign()
                    self._look_at_deferred()
                    self._handle_next_event()
            finally:
                self._end_workers()

    def _in_hand(self) -> bool:
        return bool(self._pool.busy or self._deferred)

    def _duration(self, run_id: str) -> float:
        plan = self._plans[run_id]
        return plan.tokens if plan.estimated_s is None else plan.estimated_s

    # ------------------------------------------------------------------ giving out runs

    def _assign(self) -> None:
        while (run_id := self._next_that_fits()) is not None:
            if (settled := self._settled_elsewhere(run_id)) is not None:
                self._waiting.remove(run_id)
                self._settle(run_id, settled)
                continue
            if not self._pool.has_idle:
                return
            self._waiting.remove(run_id)
            devices = self._slots.take(run_id, self._plans[run_id].world_size)
            folder = self._store.folder(run_id)
            worker = self._pool.idle_worker(devices)
            worker.give(folder, lease_timeout_s=self._options.lease_timeout_s)

    def _next_that_fits(self) -> str | None:
        """The longest waiting run whose slots and memory are free; when nothing runs, memory is."""
        busy = [worker.run_id for worker in self._pool.busy if worker.run_id]
        free = self._memory_bytes - sum(self._plans[b].estimated_memory_bytes for b in busy)
        for run_id in self._waiting:
            plan = self._plans[run_id]
            has_memory = not busy or plan.estimated_memory_bytes <= free
            if has_memory and self._slots.fit(plan.world_size):
                return run_id
        return None

    def _settled_elsewhere(self, run_id: str) -> Status | None:
        """What another launch has made of the run since this one began, if it is settled."""
        record = self._store.folder(run_id).read_record()
        failed_since = record.status is Status.failed and record != self._before[run_id]
        return record.status if record.status in FINAL or failed_since else None

    def _defer(self, run_id: str) -> None:
        self._deferred.append(run_id)
        self._tally.hold(run_id)

    def _look_at_deferred(self) -> None:
        """Take back the runs that another launch held, once it is through or gone."""
        if time.monotonic() - self._looked_at_deferred < _LOOK_AT_DEFERRED_EVERY_S:
            return
        self._looked_at_deferred = time.monotonic()
        for run_id in list(self._deferred):
            if self._store.folder(run_id).holder() is None:
                self._deferred.remove(run_id)
                self._waiting.append(run_id)

    # ------------------------------------------------------------------ hearing of them

    def _handle_next_event(self) -> None:
        try:
            event = self._pool.events.get(timeout=_POLL_S)
        except Empty:
            event = None
        if event is not None and event.worker is not None:
            self._handle(event.worker, event.body)
        self._display.show(self._tally)

    def _handle(self, worker: Worker, body: dict[str, Any]) -> None:
        match body["event"]:
            case "ready":
                worker.is_ready = True
                self._failed_starts = 0
            case "started":
                self._tally.start(body["run_id"])
            case "progress":
                self._tally.progress(body["run_id"], body["row"])
            case "held":
                self._take_back(worker)
                self._defer(body["run_id"])
            case "finished":
                self._finish(worker, body)
            case "died":
                self._bury(worker, body["returncode"])

    def _finish(self, worker: Worker, body: dict[str, Any]) -> None:
        self._take_back(worker)
        run_id, status = body["run_id"], Status(body["status"])
        told_by_others = status is Status.preempted and not self._interrupts.count
        if body.get("retire") or told_by_others:
            self._pool.forget(worker)  # one told to stop takes up no other run
        if told_by_others:
            self._requeue(run_id)
        else:
            self._settle(run_id, status, body.get("message"))

    def _take_back(self, worker: Worker) -> None:
        if worker.run_id is not None:
            self._slots.give_back(worker.run_id)
        worker.run_id = None

    def _settle(self, run_id: str, status: Status, message: str | None = None) -> None:
        self._tally.settle(run_id, status)
        row = RunRow.of(self._store.folder(run_id))
        self._display.note(self._tally, replace(row, status=status, error=message or row.error))

    # ------------------------------------------------------------------ deaths

    def _bury(self, worker: Worker, returncode: int) -> None:
        self._pool.forget(worker)
        if worker.run_id is None or self._interrupts.count:
            return
        self._slots.give_back(worker.run_id)
        how, last_words = how_it_ended(returncode), worker.last_words()
        if returncode == 0 and worker.run_id not in self._tally.running:
            self._requeue(worker.run_id)  # it was told to stop just before it got the run
        elif worker.is_ready:
            self._retry(worker.run_id, f"its process {how}", last_words)
        else:
            self._count_failed_start(how, last_words)
            self._waiting.insert(0, worker.run_id)

    def _count_failed_start(self, how: str, last_words: str) -> None:
        self._failed_starts += 1
        if self._failed_starts == _FAILED_STARTS:
            raise WorkersUnusable(
                f"worker processes do not start ({_FAILED_STARTS} in a row, the last {how}); the "
                f"logs are in {self._store.logs_path}, the last lines: {last_words}"
            )

    def _requeue(self, run_id: str) -> None:
        """Another process told the worker to stop, not the user this launch: the run goes on."""
        self._stops[run_id] += 1
        if self._stops[run_id] <= _STOPS:
            self._put_first(run_id)
            return
        told = f"its workers were told to stop {self._stops[run_id]} times in this launch"
        self._settle(run_id, self._store.folder(run_id).status(), told)

    def _put_first(self, run_id: str) -> None:
        self._tally.put_back(run_id)
        self._waiting.insert(0, run_id)

    def _retry(self, run_id: str, how: str, last_words: str) -> None:
        self._deaths[run_id] += 1
        if self._deaths[run_id] <= self._options.retries:
            self._put_first(run_id)
            return
        folder, times = self._store.folder(run_id), self._deaths[run_id]
        if record_death(folder, f"{how}, {times} times in this launch", last_words):
            self._settle(run_id, folder.status())  # it may have died just after its result
        else:
            self._defer(run_id)

    # ------------------------------------------------------------------ the end

    def _end_workers(self) -> None:
        """Leave no process behind: runs in hand write a checkpoint, or are killed in the end."""
        in_order = bool(self._pool.busy)
        for worker in self._pool.workers.values():
            worker.terminate() if in_order else worker.retire()
        deadline = time.monotonic() + (STOP_WITHIN_S if in_order else _RETIRE_WITHIN_S)
        while self._pool.workers and time.monotonic() < deadline and self._interrupts.count < 2:
            self._handle_next_event()
        for worker in self._pool.workers.values():
            worker.kill()


def record_death(folder: RunFolder, message: str, last_words: str) -> bool:
    """Write a dead worker's run down as failed; False when another launch has it already."""
    lease = Lease.acquire(folder.path, timeout_s=60)
    if lease is None:
        return False
    with lease:
        error = RunError("WorkerDied", message, last_words)
        record = folder.read_record()
        if record.status not in FINAL:
            cost = {**record.cost, "finished_at": now()}
            folder.write_record(
                replace(record, status=Status.failed, error=error, cost=cost), lease
            )
    return True
