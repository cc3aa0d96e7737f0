"""From parts to a segment: outliers out, one exact global shuffle, shards with hashes.

Shapes: D = d_model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling.activations.gather import gather_rows
from scaling.activations.manifest import (
    NUMPY_DTYPES,
    SPLITS,
    CalibrationEntry,
    Segment,
    Shard,
)
from scaling.activations.parts import Part, read_part
from scaling.activations.recipe import Recipe
from scaling.errors import UserError
from scaling.storage.atomic import commit_folder, reports_full_disk, write_bytes
from scaling.storage.hashing import sha256_hex

SHARD_BYTES = 256 << 20
CALIBRATION_TOKENS = 65_536
CALIBRATION_FILE = "calibration.f32"
_CHUNK_ROWS = 4_096


@dataclass(frozen=True)
class PartSet:
    """The consecutive finished parts of one split, as one layer's rows."""

    work: Path
    split: str
    layer: int
    d_model: int
    dtype: str
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    def path(self, index: int) -> Path:
        return Part(self.split, self.first + index).path(self.work, self.layer)

    def norms(self) -> list[NDArray[np.float32]]:
        """Raw norms, one array per part."""
        return [read_part(self.path(i), self.d_model, self.dtype).norms for i in range(len(self))]


class _LazyRows:
    """The parts' rows, mapped when indexed: there may be more parts than maps allowed."""

    def __init__(self, parts: PartSet) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> NDArray[Any]:
        return read_part(self._parts.path(index), self._parts.d_model, self._parts.dtype).rows


def median_norm(parts: PartSet) -> float:
    """Median raw norm of the first part: fixed before, and whatever, else is harvested."""
    return float(np.median(parts.norms()[0]))


def n_kept(parts: PartSet, max_norm: float) -> int:
    """Vectors that are not outliers."""
    return sum(int((norms <= max_norm).sum()) for norms in parts.norms())


def write_segment(
    store: Path,
    parts: PartSet,
    *,
    n_rows: int,
    max_norm: float,
    recipe: Recipe,
    progress: Callable[[int], None],
) -> Segment:
    """Commit the first `n_rows` kept rows of `parts`, shuffled, as a folder of the store.

    The caller makes them part of the store by writing the manifest. `progress` gets rows done.

    Raises:
        UserError: full disk (nothing is left behind), or values the dtype cannot hold.
    """
    norms = parts.norms()
    stops = np.cumsum([len(each) for each in norms])
    kept = np.flatnonzero(np.concatenate(norms) <= max_norm)
    shuffle_seed = [recipe.seed, SPLITS.index(parts.split), parts.first]
    order = kept[np.random.default_rng(shuffle_seed).permutation(n_rows)]
    name = f"{parts.split}-{parts.first:06d}"
    with _fresh_folder(store, name) as temp:
        shards = list(_write_shards(temp, name, parts, stops, order, progress))
        commit_folder(temp, store / name)
    contexts = int(stops[-1]) // recipe.rows_per_context
    return Segment(
        first_part=parts.first,
        stop_part=parts.stop,
        shuffle_seed=shuffle_seed,
        dropped_position=contexts * recipe.drop_positions,
        dropped_outlier=int(stops[-1]) - len(kept),
        dropped_surplus=len(kept) - n_rows,
        shards=shards,
    )


@contextmanager
def _fresh_folder(store: Path, name: str) -> Iterator[Path]:
    """A temporary folder beside `store/name`, free of what a killed predecessor left of either."""
    temp = store / f".{name}.partial"
    for leftover in (temp, store / name):
        shutil.rmtree(leftover, ignore_errors=True)
    temp.mkdir()
    try:
        yield temp
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _write_shards(
    temp: Path,
    name: str,
    parts: PartSet,
    stops: NDArray[np.int64],
    order: NDArray[np.int64],
    progress: Callable[[int], None],
) -> Iterator[Shard]:
    row_bytes = parts.d_model * NUMPY_DTYPES[parts.dtype].itemsize
    shard_rows = max(1, SHARD_BYTES // row_bytes)
    for number, start in enumerate(range(0, len(order), shard_rows)):
        rows = order[start : start + shard_rows]
        data = gather_rows(_LazyRows(parts), stops, rows)
        _check_finite(data, parts)
        content = data.tobytes()
        path = temp / f"shard-{number:05d}.bin"
        with reports_full_disk(path, len(content)):
            path.write_bytes(content)
        yield Shard(f"{name}/{path.name}", len(rows), sha256_hex(content))
        progress(start + len(rows))


def calibrate(store: Path, segment: Segment, d_model: int, dtype: str) -> CalibrationEntry:
    """Mean vector and mean-predictor error of the segment's first rows, the mean as a file."""
    shard = segment.shards[0]
    n_tokens = min(CALIBRATION_TOKENS, shard.n_rows)
    mapped = np.memmap(store / shard.path, NUMPY_DTYPES[dtype], "r", shape=(shard.n_rows, d_model))
    chunks = [slice(i, min(i + _CHUNK_ROWS, n_tokens)) for i in range(0, n_tokens, _CHUNK_ROWS)]
    total = np.zeros(d_model)
    for chunk in chunks:
        total += _as_float64(mapped[chunk], dtype).sum(0)
    mean = (total / n_tokens).astype("<f4")
    error = sum(float(np.square(_as_float64(mapped[c], dtype) - mean).sum()) for c in chunks)
    write_bytes(store / CALIBRATION_FILE, mean.tobytes())
    return CalibrationEntry(
        path=CALIBRATION_FILE,
        sha256=sha256_hex(mean.tobytes()),
        n_tokens=n_tokens,
        mean_predictor_mse=error / (n_tokens * d_model),
    )


def _as_float64(rows: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    if dtype == "bfloat16":  # the upper half of a float32
        return (rows.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return rows.astype(np.float64)


def _check_finite(rows: NDArray[Any], parts: PartSet) -> None:
    """Only without normalization can a vector that was finite when harvested overflow here."""
    if parts.dtype == "float16" and not np.isfinite(rows).all():
        raise UserError(
            f"activations.store_dtype=float16 cannot hold the activations of layer {parts.layer} "
            "without normalization; nothing was stored. Set activations.store_dtype=bfloat16, or "
            "activations.normalization=unit_norm."
        )
