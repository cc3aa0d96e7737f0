"""A folder of tensors as the ranks of a run write it: one safetensors file each, and a manifest.

    rank_00000.safetensors    rows [a, b) of every tensor that has a row per latent; rank 0's has
    rank_00001.safetensors    the others too (b_pre, step counts), which all ranks hold alike
    manifest.json             {schema_version, n_latents, mesh, files: {name: {sha256, bytes,
                              rows: [a, b]}}, ...}, sealed by a sha256 of its own

Rows are global, so any mesh reads what any other wrote. Folders of schema version 1 (one file,
state.safetensors, with all rows) are read too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from scaling.autoencoder.registry import PER_LATENT
from scaling.storage.hashing import file_sha256
from scaling.storage.sealed import read_sealed
from scaling.train.mesh import Mesh
from scaling.train.tensor_file import Layout

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
_ONE_FILE_SCHEMA, _ONE_FILE = 1, "state.safetensors"
_BLOCK_BYTES = 64 * 2**20
_PER_LATENT = {*PER_LATENT, "tokens_since_fired"}


def part_name(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def is_per_latent(name: str) -> bool:
    """Whether a tensor of an engine's state has a row per latent: w_enc.exp_avg has, and w_enc.step
    and b_pre have not."""
    base, _, part = name.partition(".")
    return base in _PER_LATENT and part != "step"


def own_part(tensors: dict[str, Tensor], mesh: Mesh, n_latents: int) -> dict[str, Tensor]:
    """What this rank writes of the tensors it holds, on the CPU.

    Raises:
        ValueError: a tensor has other rows than this rank's shard.
    """
    held, owned = mesh.local_rows(n_latents), mesh.owned_rows(n_latents)
    part = {}
    for name, tensor in tensors.items():
        if is_per_latent(name):
            if len(tensor) != len(held):
                raise ValueError(f"{name} has {len(tensor)} rows, its shard {len(held)}")
            rows = tensor.detach()[owned.start - held.start : owned.stop - held.start]
            # A copy where it is a part: the snapshot of the whole can go.
            part[name] = rows.to("cpu", copy=len(owned) < len(held))
        elif mesh.leads:
            part[name] = tensor.detach().cpu()
    return part


@dataclass(frozen=True)
class PartFile:
    path: Path
    rows: range
    """Of the latents."""
    sha256: str
    n_bytes: int

    def check(self) -> None:
        """Raises `ValueError` where the content is not what was written."""
        if self.path.stat().st_size != self.n_bytes or file_sha256(self.path) != self.sha256:
            raise ValueError(f"{self.path} does not match its checksum")


@dataclass(frozen=True)
class TensorFolder:
    """Such a folder, open for reading. Everything here raises `ValueError` for damage."""

    path: Path
    manifest: dict[str, Any]
    n_latents: int
    parts: list[PartFile]
    """By row, every row once."""

    @classmethod
    def open(cls, path: Path) -> TensorFolder:
        """By its manifest; no tensor is read and no file checked."""
        with _reports_damage(path):
            manifest = read_sealed(path / MANIFEST)
            version = manifest["schema_version"]
            if version not in (SCHEMA_VERSION, _ONE_FILE_SCHEMA):
                raise ValueError(f"{path} has schema_version {version}, which is unknown here")
            one_file = version == _ONE_FILE_SCHEMA
            n_latents = _rows_in(path / _ONE_FILE) if one_file else manifest["n_latents"]
            parts = [
                PartFile(
                    path / name,
                    range(*entry.get("rows", (0, n_latents))),
                    entry["sha256"],
                    entry["bytes"],
                )
                for name, entry in manifest["files"].items()
            ]
        # Files of a rank with no rows of its own come first: rank 0's may be such a one.
        parts.sort(key=lambda part: (part.rows.start, part.rows.stop))
        folder = cls(path, manifest, n_latents, parts)
        folder._check_rows()
        return folder

    def _check_rows(self) -> None:
        at = 0
        for part in self.parts:
            if part.rows.start != at:
                raise ValueError(f"{self.path}: rows from {at} on are in no file, or in two")
            at = part.rows.stop
        if at != self.n_latents:
            raise ValueError(f"{self.path}: rows from {at} on are in no file")

    def check(self, first: int = 0, every: int = 1) -> None:
        """Compare files first, first + every, ... with their checksums."""
        with _reports_damage(self.path):
            for part in self.parts[first::every]:
                part.check()

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare tensors with the shapes that they are to have as a whole; others may be there."""
        with _reports_damage(self.path):
            for part in self.parts:
                with safe_open(part.path, framework="pt") as file:
                    for name, shape in shapes.items():
                        if is_per_latent(name):
                            _check_shape(part, file, name, (len(part.rows), *shape[1:]))
                        elif part == self._common_part:
                            _check_shape(part, file, name, shape)

    def read(self, rows: range | None = None) -> dict[str, Tensor]:
        """Rows `rows` (all, if None) of the per-latent tensors, and the others whole."""
        wanted = range(self.n_latents) if rows is None else rows
        tensors: dict[str, Tensor] = {}
        with _reports_damage(self.path):
            for part in self.parts:
                common = _overlap(part.rows, wanted)
                if common or part == self._common_part:
                    self._read_part(part, common, wanted, tensors)
        return tensors

    def _read_part(
        self, part: PartFile, common: range, wanted: range, tensors: dict[str, Tensor]
    ) -> None:
        first, stop = common.start - part.rows.start, common.stop - part.rows.start
        with safe_open(part.path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if not is_per_latent(name):
                    tensors[name] = file.get_tensor(name)
                elif common:
                    rows = file.get_slice(name)[first:stop]
                    if name not in tensors:
                        tensors[name] = rows.new_empty(len(wanted), *rows.shape[1:])
                    at = common.start - wanted.start
                    tensors[name][at : at + len(common)] = rows

    @property
    def _common_part(self) -> PartFile:
        """The file with the tensors that have no rows."""
        return min(self.parts, key=lambda part: part.path.name)

    def layouts(self) -> dict[str, Layout]:
        """Of all tensors, as if there were one file."""
        with _reports_damage(self.path), safe_open(self._common_part.path, framework="pt") as file:
            return {name: self._layout(name, file) for name in file.keys()}  # noqa: SIM118

    def _layout(self, name: str, file: Any) -> Layout:
        if not is_per_latent(name):
            tensor = file.get_tensor(name)
            return Layout(tensor.dtype, tuple(tensor.shape))
        rows = file.get_slice(name)
        return Layout(rows[0:0].dtype, (self.n_latents, *rows.get_shape()[1:]))

    def blocks(self, name: str) -> Iterator[Tensor]:
        """A tensor in order, a few rows at a time."""
        if not is_per_latent(name):
            with _reports_damage(self.path), safe_open(self._common_part.path, "pt") as file:
                yield file.get_tensor(name)
            return
        for part in self.parts:
            with _reports_damage(self.path), safe_open(part.path, framework="pt") as file:
                rows = file.get_slice(name)
                row_bytes = rows[0:0].dtype.itemsize * math.prod(rows.get_shape()[1:])
                n_rows = max(1, _BLOCK_BYTES // max(1, row_bytes))
                for first in range(0, len(part.rows), n_rows):
                    yield rows[first : first + n_rows]


def read_tensors(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(manifest, tensors with all rows), checked. ValueError where anything is missing or
    damaged."""
    there = TensorFolder.open(folder)
    there.check()
    return there.manifest, there.read()


def _rows_in(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return file.get_slice("b_enc").get_shape()[0]


def _check_shape(part: PartFile, file: Any, name: str, wanted: tuple[int, ...]) -> None:
    found = file.get_slice(name).get_shape()
    if tuple(found) != wanted:
        raise ValueError(f"{part.path}: {name} is {list(found)}, and {list(wanted)} is wanted")


def _overlap(a: range, b: range) -> range:
    first = max(a.start, b.start)
    return range(first, max(first, min(a.stop, b.stop)))


@contextmanager
def _reports_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} is incomplete or unreadable ({error})") from error
