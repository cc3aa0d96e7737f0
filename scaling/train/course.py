"""Runs that ask for their batches, so that one process may train many and read each batch once.

A course is a generator: it yields the step whose batch it wants, is sent that batch, and returns
what it came to. Alone or among others it does the same operations in the same order, each between
asking and asking, so its result does not depend on its company.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:  # a worker imports torch only with its first run
    from torch import Tensor

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Batch(NamedTuple):
    vectors_BD: Tensor
    """[B, D], for reading only: others of the process train on it too."""
    read_s: float
    """This run's part of what reading it took: as much as every other that asked for it."""


Course = Generator[int, Batch, T]


class OwnTime:
    """The seconds of a process that one of its runs used: a clock that stands while others work."""

    def __init__(self) -> None:
        self._before_s = 0.0
        self._since_s: float | None = None

    @property
    def s(self) -> float:
        """So far."""
        running_s = 0.0 if self._since_s is None else time.perf_counter() - self._since_s
        return self._before_s + running_s

    def add(self, seconds: float) -> None:
        """Time that was spent for the run elsewhere."""
        self._before_s += seconds

    def __enter__(self) -> None:
        self._since_s = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._before_s, self._since_s = self.s, None


def on_own_time(course: Course[T], clock: OwnTime) -> Course[T]:
    """The same course; `clock` runs while it works, and has its part of reading added."""
    go = partial(next, course)
    try:
        while True:
            with clock:
                wanted = go()
            try:
                batch = yield wanted
            except Exception as error:
                go = partial(course.throw, error)
            else:
                clock.add(batch.read_s)
                go = partial(course.send, batch)
    except StopIteration as end:
        return end.value
    finally:
        course.close()


def alone(course: Course[T], read: Callable[[int], Tensor]) -> T:
    """Carry one course to its end; what `read` raises is raised where it asked."""
    outcomes: list[T] = []
    together({"": course}, read, lambda _key, outcome: outcomes.append(outcome))
    return outcomes[0]


def together(
    courses: Mapping[K, Course[T]],
    read: Callable[[int], Tensor],
    ended: Callable[[K, T], None],
) -> None:
    """Carry all courses to their ends; `ended` hears of each as it ends.

    Those at the lowest step go on next, each batch read once for all that ask for it: courses that
    resume at different steps meet where the last one began. What `read` raises is raised in all
    that asked. What a course raises ends them all: it is to return its failures.
    """
    _Company(courses, read, ended).carry_out()


class _Company(Generic[K, T]):
    def __init__(
        self,
        courses: Mapping[K, Course[T]],
        read: Callable[[int], Tensor],
        ended: Callable[[K, T], None],
    ) -> None:
        self._courses = dict(courses)
        self._wanted: dict[K, int] = {}
        self._read = read
        self._ended = ended

    def carry_out(self) -> None:
        for key, course in list(self._courses.items()):
            self._advance(key, partial(next, course))
        while self._wanted:
            step = min(self._wanted.values())
            self._serve(step, [key for key, wanted in self._wanted.items() if wanted == step])

    def _serve(self, step: int, asking: list[K]) -> None:
        started_s = time.perf_counter()
        try:
            vectors_BD = self._read(step)
        except Exception as error:
            trace = error.__traceback__
            for key in asking:
                again = error.with_traceback(trace)  # without the course that had it before
                self._advance(key, partial(self._courses[key].throw, again))
            return
        batch = Batch(vectors_BD, (time.perf_counter() - started_s) / len(asking))
        for key in asking:
            self._advance(key, partial(self._courses[key].send, batch))

    def _advance(self, key: K, go: Callable[[], int]) -> None:
        try:
            self._wanted[key] = go()
        except StopIteration as end:
            self._wanted.pop(key, None)
            del self._courses[key]  # and all that its run held in memory
            outcome = end.value
        else:
            return
        self._ended(key, outcome)
