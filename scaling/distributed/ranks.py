"""What a supervisor asks of whatever starts the ranks of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.runs.record import RunError

DEFAULT_BODY = "scaling.distributed.rank:train"
LEASE_LOST = 4
"""Exit code of a rank whose run was taken over: not an error of the run."""
NOT_STARTED = "RanksNotStarted"
NODE_LOST = "NodeLost"
"""`type`s of errors that are no rank's."""


@dataclass(frozen=True)
class Ended:
    """How the processes of one try ended."""

    exits: dict[int, int] = field(default_factory=dict)
    """Exit codes other than 0, by rank, a signal as its negative number. Those that were killed
    by the group itself, once the try had failed, are left out."""
    problem: RunError | None = None
    """What kept the ranks from being started, or from being watched further."""

    @property
    def is_clean(self) -> bool:
        return not self.exits and self.problem is None

    def __or__(self, other: Ended) -> Ended:
        return Ended({**self.exits, **other.exits}, self.problem or other.problem)


class RankGroup(Protocol):
    """The ranks of one try, wherever they run. Used once."""

    def start(self, attempt: AttemptFolder) -> None:
        """Begin to start them; returns soon."""
        ...

    def poll(self) -> Ended | None:
        """How they ended, once none is left; None before.

        When one has failed, the group ends the others without being told.
        """
        ...

    def stop(self) -> None:
        """Kill all that are left; returns when none is. Harmless when repeated."""
        ...
