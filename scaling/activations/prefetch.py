"""Making things ahead of need: one background thread, and the few results that are kept.

The thread is a daemon and is asked to stop when the process ends, so that neither an error nor an
exit waits for what nobody will use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

Stopping = Callable[[], bool]
"""Whether to give up what is being made: nobody will use it."""


class Stopped(Exception):
    """What was being made was given up, because nobody will use it."""


class Background:
    """A thread that carries out calls one after another."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True)
        self._thread.start()

    def stopping(self) -> bool:
        """Whether `close` was called: a long call should end."""
        return self._stop.is_set()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have `call` carried out after all others; its result or exception is the future's."""
        if self._stop.is_set():
            raise RuntimeError("the background thread was stopped")
        future: Future[T] = Future()
        whole = partial(call, *args, **kwargs)
        self._calls.put(partial(_carry_out, future, whole, self.stopping))
        return future

    def close(self) -> None:
        """End the thread; returns when it has ended. Calls not begun raise `Stopped`.

        A thread that still ran native code while the interpreter shuts down could crash it.
        """
        self._stop.set()
        self._calls.put(None)
        # The collector may drop the owner in any thread, in this one too.
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _work(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    for call in iter(calls.get, None):
        call()
        del call  # nor does a thread that waits, or has ended, keep what the last one used


def _carry_out(future: Future[T], call: Callable[[], T], stopping: Stopping) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        if stopping():
            raise Stopped
        future.set_result(call())
    except BaseException as error:  # whoever waits must hear of it, whatever it is
        future.set_exception(error)
        # The error knows this frame, which must not know the future that has the error: it would
        # keep all that was in use, a model perhaps, until the collector comes by.
        del future, call


class Ahead(Generic[K, T]):
    """Results by key, made in the background: the last used are kept, the next is begun."""

    def __init__(self, background: Background, make: Callable[[K, Stopping], T], keep: int) -> None:
        """`keep` results that were asked for stay at hand, besides the one that follows."""
        self._background, self._make, self._keep = background, make, keep
        self._known: dict[K, Future[T]] = {}
        """In order of use, the latest last."""
        self._lock = threading.Lock()

    def get(self, key: K, following: K) -> T:
        """The result for `key`, waiting for it if need be; `following` is begun meanwhile.

        Raises:
            Exception: whatever making it raised; it is tried again at the next call.
        """
        with self._lock:
            future = self._known.pop(key, None) or self._begin(key)
            ahead = self._known.pop(following, None)
            self._forget(self._keep - 1)  # first, so that there is room for what is made
            self._known[key] = future
            self._known[following] = ahead or self._begin(following)
        try:
            return future.result()
        except BaseException:
            with self._lock:
                self._known = {k: f for k, f in self._known.items() if f is not future}
            raise

    def _begin(self, key: K) -> Future[T]:
        return self._background.submit(self._make, key, self._background.stopping)

    def _forget(self, left: int) -> None:
        """Drop all but the `left` latest."""
        for key in list(self._known)[: len(self._known) - left]:
            self._known.pop(key).cancel()
