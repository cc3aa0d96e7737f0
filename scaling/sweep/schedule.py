"""Which runs go to which worker: longest first, as memory allows; deaths are retried.

What a worker is given is a group of runs (`scaling.sweep.groups`), most often of one. Each ends by
itself; the worker is free again when all have.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from queue import Empty
from typing import Any

import psutil
from rich.console import Console

from scaling.errors import UserError
from scaling.runs.record import FINAL, Record, Status
from scaling.runs.store import SweepStore
from scaling.storage.process import how_it_ended
from scaling.sweep.deaths import record_death
from scaling.sweep.groups import Group, Grouping, Hand, Plan, each_alone
from scaling.sweep.interrupt import Interrupts
from scaling.sweep.mirror import WandbOptions
from scaling.sweep.pool import Event, Pool, Worker
from scaling.sweep.progress import Tally, display_on
from scaling.sweep.slots import Slots
from scaling.sweep.table import RunRow
from scaling.worker import DEFAULT_RUNNER

STOP_WITHIN_S = 15.0
"""A run told to stop has this long to write its checkpoint, after those before it."""
_POLL_S = 0.25
_LOOK_AT_DEFERRED_EVERY_S = 1.0
_RETIRE_WITHIN_S = 5.0
_FAILED_STARTS = 3
_STOPS = 10
"""So often in one launch is a run taken up again whose worker others told to stop."""


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
    grouping: Grouping = each_alone
    """Which runs a worker trains by turns."""


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
        groups = options.grouping(plans)
        self._waiting = sorted(groups, key=lambda group: group.duration, reverse=True)
        self._hands: dict[Worker, Hand] = {}
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

    # ------------------------------------------------------------------ giving out runs

    def _assign(self) -> None:
        while (group := self._next_that_fits()) is not None:
            left = [run_id for run_id in group.run_ids if not self._is_settled_elsewhere(run_id)]
            if len(left) < len(group.plans):
                at = self._waiting.index(group)
                self._waiting[at : at + 1] = group.part(left)
                continue
            if not self._pool.has_idle:
                return
            self._waiting.remove(group)
            devices = self._slots.take(group.name, group.world_size)
            worker = self._pool.idle_worker(devices)
            self._hands[worker] = Hand(group)
            folders = [self._store.folder(run_id) for run_id in group.run_ids]
            worker.give(*folders, lease_timeout_s=self._options.lease_timeout_s)

    def _next_that_fits(self) -> Group | None:
        """The longest waiting whose slots and memory are free; when nothing runs, memory is."""
        busy = [hand.group for hand in self._hands.values()]
        free = self._memory_bytes - sum(group.memory_bytes for group in busy)
        for group in self._waiting:
            has_memory = not busy or group.memory_bytes <= free
            if has_memory and self._slots.fit(group.world_size):
                return group
        return None

    def _is_settled_elsewhere(self, run_id: str) -> bool:
        """Whether another launch has settled the run since this one began; then it is here too."""
        try:
            record = self._store.folder(run_id).read_record()
        except UserError as error:  # damaged since the launch began
            self._settle(run_id, Status.failed, str(error))
            return True
        failed_since = record.status is Status.failed and record != self._before[run_id]
        if settled := record.status in FINAL or failed_since:
            self._settle(run_id, record.status)
        return settled

    def _defer(self, run_id: str) -> None:
        self._deferred.append(run_id)
        self._tally.hold(run_id)

    def _look_at_deferred(self) -> None:
        """Take back the runs that another launch held, once it is through or gone."""
        if time.monotonic() - self._looked_at_deferred < _LOOK_AT_DEFERRED_EVERY_S:
            return
        self._looked_at_deferred = time.monotonic()
        free = [r for r in self._deferred if self._store.folder(r).holder() is None]
        if free:
            self._deferred = [run_id for run_id in self._deferred if run_id not in free]
            self._waiting += self._options.grouping([self._plans[run_id] for run_id in free])

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
                self._take_back(worker, body["run_id"])
                self._defer(body["run_id"])
            case "finished":
                self._finish(worker, body)
            case "died":
                self._bury(worker, body["returncode"])

    def _finish(self, worker: Worker, body: dict[str, Any]) -> None:
        run_id, status, hand = body["run_id"], Status(body["status"]), self._hands[worker]
        told_by_others = status is Status.preempted and not self._interrupts.count
        # One told to stop takes up no other run.
        hand.retires |= bool(body.get("retire")) or told_by_others
        if told_by_others:
            hand.returned += self._requeued([run_id])
        else:
            self._settle(run_id, status, body.get("message"))
        self._take_back(worker, run_id)

    def _take_back(self, worker: Worker, run_id: str) -> None:
        """The worker is through with the run; with its last one it is free."""
        worker.run_ids.remove(run_id)
        if worker.run_ids:
            return
        hand = self._hands.pop(worker)
        self._slots.give_back(hand.group.name)
        if hand.retires:
            self._pool.forget(worker)
        self._put_first(hand.group.part(hand.returned))

    def _settle(self, run_id: str, status: Status, message: str | None = None) -> None:
        self._tally.settle(run_id, status)
        row = RunRow.anyhow(self._store.folder(run_id))
        self._display.note(self._tally, replace(row, status=status, error=message or row.error))

    # ------------------------------------------------------------------ deaths

    def _bury(self, worker: Worker, returncode: int) -> None:
        self._pool.forget(worker)
        hand = self._hands.pop(worker, None)
        if hand is None or self._interrupts.count:
            return
        self._slots.give_back(hand.group.name)
        how, last_words = how_it_ended(returncode), worker.last_words()
        begun = [run_id for run_id in worker.run_ids if run_id in self._tally.running]
        unbegun = [run_id for run_id in worker.run_ids if run_id not in begun]
        if returncode == 0:
            unbegun = self._requeued(unbegun)  # it was told to stop just before it got to them
        elif not worker.is_ready:
            self._count_failed_start(how, last_words)
        elif not begun:
            begun, unbegun = unbegun, []
        self._put_first(hand.group.part([*hand.returned, *unbegun]))
        if len(begun) == 1:
            self._retry(begun[0], f"its process {how}", last_words)
        else:  # nobody knows whose fault it was: the halves will tell
            self._put_first([half for rest in hand.group.part(begun) for half in rest.halves()])

    def _count_failed_start(self, how: str, last_words: str) -> None:
        self._failed_starts += 1
        if self._failed_starts == _FAILED_STARTS:
            raise WorkersUnusable(
                f"worker processes do not start ({_FAILED_STARTS} in a row, the last {how}); the "
                f"logs are in {self._store.logs_path}, the last lines: {last_words}"
            )

    def _requeued(self, run_ids: Sequence[str]) -> list[str]:
        """Another process told the worker to stop, not the user this launch: these runs go on."""
        self._stops.update(run_ids)
        for run_id in run_ids:
            if self._stops[run_id] > _STOPS:
                told = f"its workers were told to stop {self._stops[run_id]} times in this launch"
                self._settle(run_id, self._store.folder(run_id).status(), told)
            else:
                self._tally.put_back(run_id)
        return [run_id for run_id in run_ids if self._stops[run_id] <= _STOPS]

    def _put_first(self, groups: Sequence[Group]) -> None:
        for group in groups:
            for run_id in group.run_ids:
                self._tally.put_back(run_id)
        self._waiting[:0] = groups

    def _retry(self, run_id: str, how: str, last_words: str) -> None:
        self._deaths[run_id] += 1
        if self._deaths[run_id] <= self._options.retries:
            self._put_first([Group.of_one(self._plans[run_id])])
            return
        folder, times = self._store.folder(run_id), self._deaths[run_id]
        if record_death(folder, f"{how}, {times} times in this launch", last_words):
            self._settle(run_id, folder.status())  # it may have died just after its result
        else:
            self._defer(run_id)

    # ------------------------------------------------------------------ the end

    def _end_workers(self) -> None:
        """Leave no process behind: runs in hand write a checkpoint, or are killed in the end."""
        in_order = max((len(worker.run_ids) for worker in self._pool.busy), default=0)
        for worker in self._pool.workers.values():
            worker.terminate() if in_order else worker.retire()
        deadline = time.monotonic() + (STOP_WITHIN_S * in_order or _RETIRE_WITHIN_S)
        while self._pool.workers and time.monotonic() < deadline and self._interrupts.count < 2:
            self._handle_next_event()
        for worker in self._pool.workers.values():
            worker.kill()
