"""Checkpoints: safetensors by rank and a JSON manifest with checksums, committed as whole folders.

    checkpoints/step_00000488/rank_00000.safetensors
                              rank_00001.safetensors
                              manifest.json   {run_id, step, fingerprint, bit_exact, mesh,
                                              n_latents, files: ...}, sealed by a sha256 of its own

A folder appears under its name only when complete (`scaling.train.shared_folder`), and any mesh
reads it (`scaling.train.shard_files`). The newest that is whole, unchanged and of this run is the
one to resume from; another is passed over with a warning, by all ranks alike. Writing happens
beside the training: `save` takes over the tensors and returns.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from scaling.plan import MeshPlan
from scaling.train.agree import first_problem, largest
from scaling.train.mesh import ALONE, Mesh
from scaling.train.shard_files import TensorFolder, own_part
from scaling.train.shared_folder import SharedFolder, remove_leftovers

DEFAULT_TIMEOUT_S = 600.0


class Origin(NamedTuple):
    """What the bits of a state come of."""

    fingerprint: str
    """Of the machine that wrote it."""
    bit_exact: bool
    """Whether all steps up to it were taken on such a machine and on such a mesh."""
    mesh: MeshPlan = MeshPlan()
    """That wrote it."""

    def doubts(self, here: str, mesh: MeshPlan) -> list[str]:
        """Why the bits of what goes on from it, on machine `here` and `mesh`, may differ.

        A state that is not exact makes nothing exact that follows from it.
        """
        found = [] if self.bit_exact else ["went on from a checkpoint whose bits may differ"]
        if self.fingerprint != here:
            found.append(f"resumed on {here}, begun on {self.fingerprint}: bits may differ")
        if self.mesh != mesh:
            found.append(f"resumed on a mesh of {mesh}, begun on {self.mesh}: bits may differ")
        return found


class Found(NamedTuple):
    """What a run resumes from."""

    step: int
    state: dict[str, Tensor] | None
    """This rank's rows; None: from the start."""
    origin: Origin | None
    """None where the manifest does not tell."""
    warnings: list[str]


def _nothing() -> None:
    pass


class Checkpoints:
    """The checkpoints of one run, newest last. All ranks call alike."""

    def __init__(
        self,
        folder: Path,
        run_id: str,
        keep: int,
        n_latents: int,
        mesh: Mesh = ALONE,
        *,
        guard: Callable[[], None] = _nothing,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """`guard` raises when the run is no longer ours to write; `timeout_s` is how long the
        leading rank waits for the others' parts."""
        self.folder = folder
        self.run_id = run_id
        self.keep = keep
        self.n_latents = n_latents
        self.mesh = mesh
        self.guard = guard
        self.timeout_s = timeout_s
        self._writing: _Background | None = None
        self._abandoned = threading.Event()

    def save(self, step: int, state: dict[str, Tensor], origin: Origin) -> None:
        """Have the state after `step` steps written, and all but the newest `keep` dropped.

        `state` has this rank's rows and must not change any more: it is written in the background.
        Waits for the checkpoint before. Collective.

        Raises:
            UserError: the disk was full for the one before; earlier ones are as they were.
        """
        self.finish()
        part = own_part(state, self.mesh, self.n_latents)
        shared = SharedFolder.begin(self._path(step), self.mesh, self.n_latents)
        facts = {"run_id": self.run_id, "step": step, **origin._asdict()}
        facts["mesh"] = asdict(origin.mesh)
        self._writing = _Background(lambda: self._write(shared, part, step, facts))

    def finish(self) -> None:
        """Wait until the last checkpoint is there; on ranks that do not lead, their part of it.

        Raises what went wrong with it.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.wait()

    def abandon(self) -> None:
        """The run is over, for whatever reason: wait for no other rank, raise nothing."""
        self._abandoned.set()
        with suppress(Exception):
            self.finish()

    def _write(
        self, shared: SharedFolder, part: dict[str, Tensor], step: int, facts: dict[str, Any]
    ) -> None:
        shared.write_part(part)
        if not self.mesh.leads:
            return
        part.clear()
        shared.commit(facts, timeout_s=self.timeout_s, guard=self.guard, abandoned=self._abandoned)
        # Newer ones are those passed over at the start: they do not count as kept.
        for old in [there for there in self._steps() if there <= step][: -self.keep]:
            shutil.rmtree(self._path(old))

    def load_newest(self) -> Found:
        """The newest checkpoint that is sound, and what was passed over to get there. Collective.

        Every file is checked by one of the ranks; each rank reads only the rows it holds.
        """
        if self.mesh.leads:
            remove_leftovers(self.folder, "step_*")
        warnings: list[str] = []
        step = self._newest_below(sys.maxsize)
        while step >= 0:
            found, problem = self._try(step)
            problem = first_problem(self.mesh, problem, f"soundness of checkpoint {step}")
            if found is not None and problem is None:
                return found._replace(warnings=warnings)
            warnings.append(f"checkpoint passed over: {problem}")
            step = self._newest_below(step)
        return Found(0, None, None, warnings)

    def _newest_below(self, step: int) -> int:
        """As the leading rank sees it: others' view of a shared folder may be older. -1: none."""
        seen = [there for there in self._steps() if there < step] if self.mesh.leads else []
        return largest(self.mesh, max(seen, default=-1), "step of the newest checkpoint")

    def _try(self, step: int) -> tuple[Found | None, str | None]:
        """(what is there, None) or (None, what is wrong with it), as this rank sees it."""
        mesh = self.mesh
        try:
            there = open_checkpoint(self._path(step), self.run_id)
            if there.n_latents != self.n_latents:
                raise ValueError(f"{there.path} has {there.n_latents} latents")
            there.check(first=mesh.rank, every=mesh.world_size)
            state = there.read(mesh.local_rows(self.n_latents))
        except ValueError as error:
            return None, str(error)
        return Found(step, state, _origin(there.manifest), []), None

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _steps(self) -> list[int]:
        return checkpoint_steps(self.folder)


def checkpoint_steps(folder: Path) -> list[int]:
    """Of the checkpoints there, sound or not, rising."""
    names = [path.name.removeprefix("step_") for path in folder.glob("step_*")]
    return sorted(int(name) for name in names if name.isdecimal())


def open_checkpoint(path: Path, run_id: str) -> TensorFolder:
    """A checkpoint by its manifest. ValueError where it is damaged or another's."""
    there = TensorFolder.open(path)
    if there.manifest.get("run_id") != run_id:
        raise ValueError(f"{path} is of run {there.manifest.get('run_id')}")
    if path.name != f"step_{there.manifest.get('step', -1):08d}":
        raise ValueError(f"{path} holds step {there.manifest.get('step')}")
    return there


def write_tensors(
    final: Path,
    tensors: dict[str, Tensor],
    facts: dict[str, Any],
    n_latents: int,
    mesh: Mesh = ALONE,
    *,
    guard: Callable[[], None] = _nothing,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> None:
    """Write a folder of tensors, each rank its rows, in place of one that is there. Collective.

    Returns on the leading rank when the folder is complete, on others when their part is.

    Raises:
        UserError: the disk is full.
    """
    shared = SharedFolder.begin(final, mesh, n_latents)
    shared.write_part(own_part(tensors, mesh, n_latents))
    if mesh.leads:
        shared.commit(facts, timeout_s=timeout_s, guard=guard, abandoned=threading.Event())


def _origin(manifest: dict[str, Any]) -> Origin | None:
    if "fingerprint" not in manifest:
        return None
    mesh = MeshPlan(**manifest.get("mesh", {}))
    return Origin(manifest["fingerprint"], manifest["bit_exact"], mesh)


class _Background:
    """Work in a thread of its own."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised where somebody waits
            self._error = error

    def wait(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error
