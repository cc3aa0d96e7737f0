"""Reading a store: memory-mapped, by any number of processes at once.

Shapes: B tokens in a batch, D = d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scaling.activations.embedded import MODEL_PACKAGE, N_PARAMS
from scaling.activations.gather import gather_rows
from scaling.activations.manifest import NUMPY_DTYPES, Manifest, Shard, load_manifest
from scaling.activations.order import RowOrder, Rows
from scaling.activations.source import Calibration, SourceSpec
from scaling.errors import UserError
from scaling.storage.hashing import file_sha256

if TYPE_CHECKING:
    from torch import Tensor


class StoreSource:
    """The view of a store that `spec` names."""

    def __init__(self, spec: SourceSpec) -> None:
        assert spec.n_train is not None
        self.spec = spec
        folder = Path(spec.params["path"])
        manifest = _matching_manifest(folder, spec)
        self._train = ShardedRows(folder, manifest, "train", spec.n_train)
        self._eval = ShardedRows(folder, manifest, "eval", spec.n_eval)
        self.calibration = _read_calibration(folder, manifest)
        self._orders: dict[tuple[int, int], RowOrder] = {}

    def train_batch(
        self,
        *,
        seed: int,
        step: int,
        batch_tokens: int,
        shuffle_block: int,
        replica: int = 0,
        replicas: int = 1,
    ) -> Tensor:
        order, part_tokens = self._order(seed, shuffle_block), batch_tokens // replicas
        start = step * batch_tokens + replica * part_tokens
        return self._train.read(order.rows(start, part_tokens))

    def eval_batches(self, batch_tokens: int) -> Iterator[Tensor]:
        for start in range(0, self.spec.n_eval, batch_tokens):
            stop = min(start + batch_tokens, self.spec.n_eval)
            yield self._eval.read(np.arange(start, stop))

    def sample(self, n: int) -> Tensor:
        assert self.spec.n_train is not None
        return self._train.read(np.arange(min(n, self.spec.n_train)))

    def _order(self, seed: int, block: int) -> RowOrder:
        assert self.spec.n_train is not None
        if (seed, block) not in self._orders:
            self._orders = {(seed, block): RowOrder(self.spec.n_train, seed, block)}
        return self._orders[seed, block]


class ShardedRows:
    """The first `n_rows` rows of one split, memory-mapped."""

    def __init__(self, folder: Path, manifest: Manifest, split: str, n_rows: int) -> None:
        shards = manifest.shards(split, n_rows)
        self._dtype = manifest.dtype
        self._maps = [_map_shard(folder, shard, manifest) for shard in shards]
        self._stops = np.cumsum([shard.n_rows for shard in shards])
        self._n_rows = n_rows

    def read(self, rows: Rows) -> Tensor:
        """The named rows, float32 [B, D]."""
        if rows.size and rows.max() >= self._n_rows:
            raise IndexError(f"row {rows.max()} of a view of {self._n_rows} rows")
        return _to_float32(gather_rows(self._maps, self._stops, rows), self._dtype)


def store_spec(
    folder: Path, manifest: Manifest, *, n_train: int | None, n_eval: int | None
) -> SourceSpec:
    """The spec of a view of the store in `folder`; None = everything in it.

    Raises:
        UserError: the view is larger than the store.
    """
    wanted = {"train": n_train, "eval": n_eval}
    n_rows = {split: _view_rows(folder, manifest, split, n) for split, n in wanted.items()}
    return SourceSpec(
        kind="store",
        content_hash=manifest.content_hash(n_rows["train"]),
        eval_hash=manifest.eval_hash(n_rows["eval"]),
        d_model=manifest.d_model,
        n_train=n_rows["train"],
        n_eval=n_rows["eval"],
        params={"path": str(folder.absolute())},
        description=_describe(manifest, n_rows["train"]),
    )


def verify_view(spec: SourceSpec, progress: Callable[[int, int], None]) -> None:
    """Check every byte of the view against the recorded hashes; `progress` gets bytes, total.

    Raises:
        UserError: a shard or the calibration is missing, short or changed.
    """
    assert spec.n_train is not None
    folder = Path(spec.params["path"])
    manifest = _matching_manifest(folder, spec)
    views = [("train", spec.n_train), ("eval", spec.n_eval)]
    shards = [shard for split, n_rows in views for shard in manifest.shards(split, n_rows)]
    total = sum(shard.n_rows for shard in shards) * manifest.row_bytes
    done = 0
    for shard in shards:
        _check_size(folder, shard, manifest)
        _check_hash(folder, shard.path, shard.sha256)
        done += shard.n_rows * manifest.row_bytes
        progress(done, total)
    _check_hash(folder, manifest.calibration.path, manifest.calibration.sha256)


def _describe(manifest: Manifest, n_train: int) -> dict[str, Any]:
    return {
        "subject_model": manifest.names["model"],
        "subject_content": manifest.recipe["model"],
        "subject_params": _subject_params(manifest),
        "layer": manifest.layer,
        "context": manifest.recipe["context"],
        "normalization": manifest.recipe["normalization"],
        "text": manifest.names["text"],
        "text_content": manifest.recipe["text"],
        "model_dtype": manifest.recipe["model_dtype"],
        "store_dtype": manifest.dtype,
        "outlier_factor": manifest.recipe["outlier_factor"],
        "dropped": manifest.dropped(n_train),
    }


def _subject_params(manifest: Manifest) -> int | None:
    """None in stores that are older than the count, but of the packaged model."""
    packaged = manifest.recipe["model"].startswith(f"{MODEL_PACKAGE}==")
    return manifest.names.get("params", N_PARAMS if packaged else None)


def _view_rows(folder: Path, manifest: Manifest, split: str, wanted: int | None) -> int:
    held = manifest.n_rows(split)
    key = "max_tokens" if split == "train" else "eval_tokens"
    if wanted is None:
        return held
    if wanted < 1:
        raise UserError(f"activations.{key}={wanted} must be at least 1.")
    if wanted > held:
        raise UserError(
            f"activations.{key}={wanted} is more than the {held} {split} vectors in {folder}: "
            f"lower it, or harvest more with the same activations keys and {key}={wanted}."
        )
    return wanted


def _matching_manifest(folder: Path, spec: SourceSpec) -> Manifest:
    manifest = load_manifest(folder)
    if manifest is None:
        raise UserError(
            f"activations {spec.activations_id}: there is no store in {folder}. Run the same "
            "launch again to harvest it, or set activations.path to where it was moved."
        )
    assert spec.n_train is not None
    found = (manifest.content_hash(spec.n_train), manifest.eval_hash(spec.n_eval))
    if found != (spec.content_hash, spec.eval_hash):
        raise UserError(
            f"the store in {folder} holds other vectors ({found[0][:12]}) than the run was planned "
            f"with ({spec.activations_id}): plan the run again under another sweep_name, or put "
            "the old store back."
        )
    return manifest


def _map_shard(folder: Path, shard: Shard, manifest: Manifest) -> NDArray[Any]:
    _check_size(folder, shard, manifest)
    shape = (shard.n_rows, manifest.d_model)
    mapped = np.memmap(folder / shard.path, NUMPY_DTYPES[manifest.dtype], "r", shape=shape)
    return np.asarray(mapped)  # plain array over the map: indexing it is several times faster


def _check_size(folder: Path, shard: Shard, manifest: Manifest) -> None:
    path = folder / shard.path
    expected = shard.n_rows * manifest.row_bytes
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        state = "is missing" if found is None else f"has {found} bytes instead of {expected}"
        raise _corrupt(folder, f"{path} {state}")


def _check_hash(folder: Path, relative: str, sha256: str) -> None:
    path = folder / relative
    if not path.is_file():
        raise _corrupt(folder, f"{path} is missing")
    if file_sha256(path) != sha256:
        raise _corrupt(folder, f"{path} does not match its recorded sha256")


def _corrupt(folder: Path, fault: str) -> UserError:
    return UserError(
        f"corrupt activation store: {fault}. Remove the folder {folder} and launch again (its "
        "vectors are harvested anew), or restore the file from a copy."
    )


def _read_calibration(folder: Path, manifest: Manifest) -> Calibration:
    import torch

    entry = manifest.calibration
    _check_hash(folder, entry.path, entry.sha256)
    mean = np.fromfile(folder / entry.path, "<f4").astype(np.float32)
    return Calibration(torch.from_numpy(mean), entry.mean_predictor_mse)


def _to_float32(rows: NDArray[Any], dtype: str) -> Tensor:
    import torch

    tensor = torch.from_numpy(rows)
    return (tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor).float()
