"""What a store on disk says about itself, and the hashes that identify a view of it.

A store holds one layer's vectors as two splits (train, eval); a split is a list of segments, one
per harvest; a segment is a folder of shards, raw little-endian rows in an order shuffled once.
Rows are numbered through all segments. A view is the first n rows: extending a store leaves every
earlier view, hence its hash, as it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from scaling.errors import UserError
from scaling.storage.hashing import canonical_json, sha256_hex
from scaling.storage.sealed import read_sealed, write_sealed

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
SPLITS = ("train", "eval")

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),  # numpy has none: bits only
    "float32": np.dtype("<f4"),
}


@dataclass(frozen=True)
class Shard:
    path: str
    """Relative to the store's folder."""
    n_rows: int
    sha256: str


@dataclass(frozen=True)
class Segment:
    """The rows that one harvest added to one split."""

    first_part: int
    stop_part: int
    """Parts of the text it was made from: [first_part, stop_part)."""
    shuffle_seed: list[int]
    dropped_position: int
    """Vectors left out for their position in the context."""
    dropped_outlier: int
    """Vectors left out for their norm."""
    dropped_surplus: int
    """Good vectors of the last part beyond the number asked for."""
    shards: list[Shard]

    @property
    def n_rows(self) -> int:
        return sum(shard.n_rows for shard in self.shards)


@dataclass(frozen=True)
class CalibrationEntry:
    """Measured once on the first segment's first rows; never changed by an extension."""

    path: str
    """float32 [d_model], little-endian: the mean vector."""
    sha256: str
    n_tokens: int
    mean_predictor_mse: float


@dataclass(frozen=True)
class Manifest:
    recipe: dict[str, Any]
    """What determined the vectors (scaling.activations.recipe), without any path."""
    layer: int
    d_model: int
    dtype: str
    median_norm: float
    """Median norm of the residual stream over the first part of the training text."""
    calibration: CalibrationEntry
    names: dict[str, Any]
    """Model and text as the user named them, and the model's parameters; part of no hash."""
    train: list[Segment] = field(default_factory=list)
    eval: list[Segment] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def segments(self, split: str) -> list[Segment]:
        return self.train if split == "train" else self.eval

    def n_rows(self, split: str) -> int:
        return sum(segment.n_rows for segment in self.segments(split))

    def next_part(self, split: str) -> int:
        """The first part of the text that no segment has used."""
        segments = self.segments(split)
        return segments[-1].stop_part if segments else 0

    def shards(self, split: str, n_rows: int) -> list[Shard]:
        """The shards that hold the first `n_rows` rows."""
        shards = [shard for segment in self.segments(split) for shard in segment.shards]
        return _covering(shards, n_rows)

    def dropped(self, n_train: int) -> dict[str, int]:
        """Training vectors left out, by reason, in the harvests that the view rests on."""
        segments = _covering(self.train, n_train)
        reasons = ("position", "outlier", "surplus")
        return {
            why: sum(getattr(segment, f"dropped_{why}") for segment in segments) for why in reasons
        }

    @property
    def row_bytes(self) -> int:
        return self.d_model * NUMPY_DTYPES[self.dtype].itemsize

    def content_hash(self, n_train: int) -> str:
        """Identifies the first `n_train` training vectors with their calibration."""
        calibration = [self.calibration.sha256, repr(self.calibration.mean_predictor_mse)]
        return self._hash("train", n_train, {"calibration": calibration})

    def eval_hash(self, n_eval: int) -> str:
        """Identifies the first `n_eval` held-out vectors."""
        return self._hash("eval", n_eval, {})

    def _hash(self, split: str, n_rows: int, extra: dict[str, Any]) -> str:
        shards = [[shard.sha256, shard.n_rows] for shard in self.shards(split, n_rows)]
        layout = {"d_model": self.d_model, "dtype": self.dtype, "layer": self.layer}
        content = {"recipe": self.recipe, "shards": shards, "n_rows": n_rows, **layout, **extra}
        return sha256_hex(canonical_json(content))


_HasRows = TypeVar("_HasRows", Shard, Segment)


def _covering(pieces: list[_HasRows], n_rows: int) -> list[_HasRows]:
    """The first pieces, as many as hold `n_rows` rows."""
    starts = accumulate((piece.n_rows for piece in pieces), initial=0)
    return [piece for piece, start in zip(pieces, starts, strict=False) if start < n_rows]


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest: the step that makes new segments part of the store."""
    # Sealed: a number in it divides every loss, so that none may change unnoticed.
    write_sealed(folder / FILE_NAME, asdict(manifest))


def load_manifest(folder: Path) -> Manifest | None:
    """The store's manifest, or None where there is no finished store.

    Raises:
        UserError: damaged, or written by a newer version.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        data = read_sealed(path)
    except UserError as error:
        raise _damaged(path, str(error)) from error
    if data.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version={data.get('schema_version')}, this program reads "
            f"{SCHEMA_VERSION}: use the version that wrote it, or remove {folder} to harvest anew."
        )
    try:
        return _from_json(data)
    except (KeyError, TypeError) as error:
        raise _damaged(path, repr(error)) from error


def _damaged(path: Path, fault: str) -> UserError:
    return UserError(
        f"the activation store in {path.parent} has no sound manifest: {fault.rstrip('.')}; "
        f"restore {path}, or remove {path.parent} to harvest it anew."
    )


def _from_json(data: dict[str, Any]) -> Manifest:
    splits = {split: [_segment(entry) for entry in data[split]] for split in SPLITS}
    calibration = CalibrationEntry(**data["calibration"])
    return Manifest(**{**data, **splits, "calibration": calibration})


def _segment(data: dict[str, Any]) -> Segment:
    return Segment(**{**data, "shards": [Shard(**shard) for shard in data["shards"]]})
