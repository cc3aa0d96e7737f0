"""Requests to a server that limits them: spaced out, and repeated after a growing wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from analysis.errors import TableError
from analysis.records.wandb_reader import is_busy, one_line, retry_after_s

T = TypeVar("T")


@dataclass
class Pace:
    """At most one request per `gap_s`; a busy server is asked again `tries` times in all."""

    gap_s: float = 0.1
    tries: int = 8
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _next_at: float = 0.0

    def ask(self, what: str, request: Callable[[], T]) -> T:
        """The answer to `request`. An IndexError is passed on: it is the end of a list.

        Raises:
            TableError: refused, or still busy after the last try; it names `what`.
        """
        for attempt in range(self.tries):
            self.wait()
            try:
                return request()
            except (IndexError, StopIteration, TableError):
                raise
            except Exception as error:  # a foreign library's: each kind ends here
                self.after(what, error, attempt)
        raise AssertionError("the last failure raises")

    def wait(self) -> None:
        """Until the next request may go out."""
        left = self._next_at - self.clock()
        if left > 0:
            self.sleep(left)
        self._next_at = self.clock() + self.gap_s

    def after(self, what: str, error: Exception, attempt: int) -> None:
        """Wait after failure number `attempt` (from 0). TableError where no retry can help."""
        if not is_busy(error):
            raise TableError(
                f"W&B did not give {what} ({one_line(error)}); check the entity, project and group "
                "and that the account of `wandb login` may read them."
            ) from error
        if attempt + 1 >= self.tries:
            raise TableError(
                f"W&B was too busy to give {what} ({one_line(error)}, {self.tries} tries); what "
                "was read is kept: the same call goes on from there."
            ) from error
        backoff = min(self.longest_wait_s, self.first_wait_s * 2**attempt)
        self.sleep(max(backoff, retry_after_s(error)))
