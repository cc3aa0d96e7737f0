"""A folder that the ranks of a run fill together, and that appears whole or not at all.

    .step_00000488.<token>.tmp/rank_00001.safetensors     written and flushed by rank 1
                               rank_00001.json            then its word for it: checksum and rows

The leading rank waits until every rank has given its word, writes the manifest, flushes and renames
the folder. The token is drawn anew for each folder and agreed by all ranks beforehand, so nothing
that a killed attempt left, or a process that outlived it still writes, is taken for a part. While
they write, the ranks speak through the file system alone: training goes on beside it and has the
process group for itself. What a failure leaves aside goes when the run is taken up again.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scaling.errors import UserError
from scaling.storage.atomic import commit_folder, reports_full_disk
from scaling.storage.sealed import read_sealed, write_sealed
from scaling.train.agree import fresh_token
from scaling.train.mesh import Mesh
from scaling.train.shard_files import MANIFEST, SCHEMA_VERSION, part_name
from scaling.train.tensor_file import write_tensor_file

_POLL_S = (0.01, 0.5)
"""From the first look to the later ones."""


class PartsMissing(TimeoutError):
    """Some ranks never said that their file is there."""


@dataclass(frozen=True)
class SharedFolder:
    """One rank's side of it."""

    final: Path
    token: str
    rank: int
    world_size: int
    n_latents: int
    rows: range
    """Written by this rank."""

    @classmethod
    def begin(cls, final: Path, mesh: Mesh, n_latents: int) -> SharedFolder:
        """Collective; nothing is written yet."""
        token = fresh_token(mesh, f"name of {final.name}")
        rows = mesh.owned_rows(n_latents)
        return cls(final, token, mesh.rank, mesh.world_size, n_latents, rows)

    @property
    def aside(self) -> Path:
        return self.final.with_name(f".{self.final.name}.{self.token}.tmp")

    def write_part(self, tensors: dict[str, Tensor]) -> None:
        """This rank's file, and then its word for it.

        Raises:
            UserError: the disk is full. The leading rank is told, if anything can still be written.
        """
        try:
            n_bytes = sum(tensor.nbytes for tensor in tensors.values())
            with reports_full_disk(self.final, n_bytes):
                self.aside.mkdir(parents=True, exist_ok=True)
                written = write_tensor_file(self.aside / part_name(self.rank), tensors)
            entry = {
                "sha256": written.sha256,
                "bytes": written.n_bytes,
                "rows": [self.rows.start, self.rows.stop],
            }
            self._give_word({"entry": entry})
        except Exception as error:
            self._give_up(error)
            raise

    def _give_up(self, error: Exception) -> None:
        with suppress(OSError):
            (self.aside / part_name(self.rank)).unlink(missing_ok=True)
        if self.world_size == 1:
            shutil.rmtree(self.aside, ignore_errors=True)
        else:
            with suppress(Exception):
                self._give_word({"error": str(error)})

    def _give_word(self, word: dict[str, Any]) -> None:
        write_sealed(self._word_path(self.rank), {"token": self.token, **word})

    def commit(
        self,
        facts: dict[str, Any],
        *,
        timeout_s: float,
        guard: Callable[[], None],
        abandoned: threading.Event,
    ) -> None:
        """For the leading rank, after its own part: wait for the others', then show the folder.

        Replaces a folder of that name. `guard` raises when this run is no longer ours.

        Raises:
            PartsMissing: naming the ranks, after `timeout_s` or once `abandoned` is set.
            UserError: the disk is full, here or on another rank.
        """
        files = self._entries(timeout_s, abandoned)  # who is late may still be writing: leave it
        try:
            content = {"schema_version": SCHEMA_VERSION, **facts, "n_latents": self.n_latents}
            write_sealed(self.aside / MANIFEST, content | {"files": files})
            for rank in range(self.world_size):
                self._word_path(rank).unlink()
            guard()
            shutil.rmtree(self.final, ignore_errors=True)
            commit_folder(self.aside, self.final)
        except BaseException:
            shutil.rmtree(self.aside, ignore_errors=True)
            raise

    def _entries(self, timeout_s: float, abandoned: threading.Event) -> dict[str, Any]:
        """What the manifest says of each file, once every rank has given its word."""
        entries: dict[int, Any] = {}
        deadline_s = time.monotonic() + timeout_s
        pause_s, longest_s = _POLL_S
        while True:
            last_look = abandoned.is_set() or time.monotonic() > deadline_s
            for rank in self._spoken() - entries.keys():
                entries[rank] = self._word_of(rank)
            missing = [rank for rank in range(self.world_size) if rank not in entries]
            if not missing:
                return {part_name(rank): entries[rank] for rank in range(self.world_size)}
            if last_look:
                raise PartsMissing(self._lament(missing, timeout_s))
            abandoned.wait(pause_s)
            pause_s = min(1.5 * pause_s, longest_s)

    def _spoken(self) -> set[int]:
        # Listing the folder, as an NFS client may go on for long believing that a file it once
        # looked for in vain is not there.
        ranks = {path.stem: path for path in self.aside.iterdir() if path.suffix == ".json"}
        return {rank for rank in range(self.world_size) if self._word_path(rank).stem in ranks}

    def _word_of(self, rank: int) -> dict[str, Any]:
        word = read_sealed(self._word_path(rank))
        if word["token"] != self.token:
            raise ValueError(f"{self._word_path(rank)} is of another attempt")
        if "error" in word:
            raise UserError(f"rank {rank} could not write its part: {word['error']}")
        return word["entry"]

    def _word_path(self, rank: int) -> Path:
        return (self.aside / part_name(rank)).with_suffix(".json")

    def _lament(self, missing: list[int], timeout_s: float) -> str:
        names = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        which = f"rank {names} has" if len(missing) == 1 else f"ranks {names} have"
        return f"{which} not written their part of {self.final} within {timeout_s:g} s"


def remove_leftovers(folder: Path, name: str) -> None:
    """Drop what killed attempts left aside for folders whose names match the pattern `name`.

    For the leading rank, while nothing is being written there.
    """
    for leftover in folder.glob(f".{name}.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
