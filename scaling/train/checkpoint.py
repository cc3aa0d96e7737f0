"""Checkpoints: safetensors and a JSON manifest with checksums, committed as whole folders.

    checkpoints/step_00000488/state.safetensors
                              manifest.json   {run_id, step, fingerprint, bit_exact, files: ...},
                                              sealed by a sha256 of its own

A folder appears under its name only when complete. The newest that is whole, unchanged and of this
run is the one to resume from; another is passed over with a warning.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from scaling.storage.atomic import atomic_folder
from scaling.storage.hashing import file_sha256
from scaling.storage.sealed import read_sealed, write_sealed

SCHEMA_VERSION = 1
STATE = "state.safetensors"
MANIFEST = "manifest.json"


class Origin(NamedTuple):
    """What the bits of a state come of."""

    fingerprint: str
    """Of the machine that wrote it."""
    bit_exact: bool
    """Whether all steps up to it were taken on such a machine."""


class Found(NamedTuple):
    """What a run resumes from."""

    step: int
    state: dict[str, Tensor] | None
    """None: from the start."""
    origin: Origin | None
    """None where the manifest does not tell."""
    warnings: list[str]


class Checkpoints:
    """The checkpoints of one run, newest last."""

    def __init__(self, folder: Path, run_id: str, keep: int) -> None:
        self.folder = folder
        self.run_id = run_id
        self.keep = keep

    def save(self, step: int, state: dict[str, Tensor], origin: Origin) -> None:
        """Write the state after `step` steps and drop all but the newest `keep`.

        Raises:
            UserError: the disk is full; earlier checkpoints are as they were.
        """
        final = self._path(step)
        shutil.rmtree(final, ignore_errors=True)  # damaged, or it would have been gone on from
        with atomic_folder(final) as temp:
            write_tensors(temp, state, {"run_id": self.run_id, "step": step, **origin._asdict()})
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)

    def load_newest(self) -> Found:
        """The newest checkpoint whose checksums hold, and what was passed over to get there."""
        warnings: list[str] = []
        for folder in reversed(self._all()):
            try:
                manifest, state = read_tensors(folder)
                self._check_belongs(folder, manifest)
            except ValueError as error:
                warnings.append(f"checkpoint passed over: {error}")
                continue
            return Found(manifest["step"], state, _origin(manifest), warnings)
        return Found(0, None, None, warnings)

    def _check_belongs(self, folder: Path, manifest: dict[str, Any]) -> None:
        if manifest.get("run_id") != self.run_id:
            raise ValueError(f"{folder} is of run {manifest.get('run_id')}")
        if folder != self._path(manifest.get("step", -1)):
            raise ValueError(f"{folder} holds step {manifest.get('step')}")

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"))


def _origin(manifest: dict[str, Any]) -> Origin | None:
    if "fingerprint" not in manifest:
        return None
    return Origin(manifest["fingerprint"], manifest["bit_exact"])


def write_tensors(folder: Path, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
    """One safetensors file and its manifest, into an existing folder."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / STATE)
    entry = {"sha256": file_sha256(folder / STATE), "bytes": (folder / STATE).stat().st_size}
    content = {"schema_version": SCHEMA_VERSION, **facts, "files": {STATE: entry}}
    write_sealed(folder / MANIFEST, content)


def read_tensors(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(manifest, tensors) of such a folder. ValueError where anything is missing or damaged."""
    path = folder / STATE
    try:
        manifest = read_sealed(folder / MANIFEST)
        entry = manifest["files"][STATE]
        if path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            raise ValueError(f"{path} does not match its checksum")
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is incomplete or unreadable ({error})") from error
    return manifest, load_file(path)
