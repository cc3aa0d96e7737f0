"""Ctrl-C and its kin as a count that a loop looks at, instead of an exception anywhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _heeded() -> list[signal.Signals]:
    """All of them, but a hang-up that nohup has made this process deaf to."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in _SIGNALS if not (deaf and number is signal.SIGHUP)]


class Interrupts:
    """Within the `with` block, each SIGINT adds one to `count`; SIGTERM and SIGHUP make it one.

    The second Ctrl-C of an impatient user is another wish than the first. A terminal, a cluster and
    scaling.cancel, which says it by a file as well, all mean the same and may say it together.

    Outside the main thread, where no handler can be set, it never counts anything.
    """

    def __init__(self) -> None:
        self.count = 0
        self.wake: Callable[[], None] = lambda: None
        """Called at each signal, to end a wait early. Must be safe in a signal handler."""

    def __enter__(self) -> Self:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._count) for number in _heeded()}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def ask_to_end(self) -> None:
        """As SIGTERM would."""
        self.count = max(1, self.count)
        self.wake()

    def _count(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.ask_to_end()
            return
        self.count += 1
        self.wake()
