"""RUN/attempts/TOKEN/TRY: what the processes of one try at a run tell each other by files.

The supervisor makes it; all nodes of a run see it. `TOKEN` is that of the supervisor's lease.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from scaling.errors import UserError
from scaling.runs.record import RunError, RunOutcome
from scaling.runs.store import RunFolder
from scaling.storage.atomic import read_json, write_json

LAST_WORDS_LINES = 30


@dataclass(frozen=True)
class RankFailure:
    """Why a rank ended itself."""

    error: RunError
    at: float
    """Seconds since 1970, by its own clock."""


@dataclass(frozen=True)
class AttemptFolder:
    path: Path

    @classmethod
    def make(cls, folder: RunFolder, token: int, number: int) -> Self:
        """The folder of the `number`th try under a lease."""
        path = folder.path / "attempts" / f"{token:06d}" / str(number)
        path.mkdir(parents=True)
        return cls(path)

    def read_outcome(self) -> RunOutcome | None:
        """What the run came to, once its ranks have reached their common end."""
        path = self.path / "outcome.json"
        return RunOutcome.from_json(read_json(path)) if path.exists() else None

    def write_outcome(self, outcome: RunOutcome) -> None:
        write_json(self.path / "outcome.json", outcome.to_json())

    def wish_to_stop(self) -> None:
        (self.path / "stop").touch()

    def is_stop_wished(self) -> bool:
        return (self.path / "stop").exists()

    def abort(self, reason: str) -> None:
        """Tell the ranks of all nodes that this try is over."""
        write_json(self.path / "aborted.json", {"reason": reason})

    def is_aborted(self) -> bool:
        return (self.path / "aborted.json").exists()

    def write_failure(self, rank: int, error: RunError) -> None:
        """Keep the first failure of a rank; what follows from it is not news."""
        path = self.path / f"rank_{rank}.error.json"
        if not path.exists():
            write_json(path, {"error": asdict(error), "at": time.time()})

    def failures(self) -> list[RankFailure]:
        """Of all ranks, the earliest first."""
        return sorted(self._failures(), key=lambda failure: failure.at)

    def _failures(self) -> Iterator[RankFailure]:
        for path in self.path.glob("rank_*.error.json"):
            try:
                row: dict[str, Any] = read_json(path)
            except UserError:
                continue  # a disk that loses files must not hide the other ranks' words
            yield RankFailure(RunError(**row["error"]), row["at"])

    def log_path(self, rank: int | str, stream: str) -> Path:
        return self.path / f"rank_{rank}.{stream}.log"

    def last_words(self, rank: int) -> str:
        """The last lines that a rank wrote to stderr."""
        path = self.log_path(rank, "stderr")
        if not path.exists():
            return ""
        return "\n".join(path.read_text(errors="replace").splitlines()[-LAST_WORDS_LINES:])
