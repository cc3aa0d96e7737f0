"""Stores made without any model: parts of known rows, through the code that ends a harvest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scaling.activations.manifest import Manifest, Segment, load_manifest, save_manifest
from scaling.activations.parts import FOLDER, Part
from scaling.activations.recipe import Recipe
from scaling.activations.segment import PartSet, calibrate, write_segment
from scaling.activations.vectors import Vectors, part_bytes

D_MODEL = 8
PART_ROWS = 100


def recipe(dtype: str = "float16") -> Recipe:
    return Recipe(
        model="test",
        text="test",
        context=5,
        drop_positions=1,
        outlier_factor=5.0,
        normalization="unit_norm",
        store_dtype=dtype,
        model_dtype="float32",
        eval_fraction=0.1,
        seed=0,
        batch_contexts=25,
    )


def numbered_rows(first: int, n: int) -> torch.Tensor:
    """Rows told apart by their first two components, exact in every dtype."""
    rows = torch.zeros(n, D_MODEL)
    numbers = torch.arange(first, first + n)
    rows[:, 0], rows[:, 1] = numbers // 100, numbers % 100
    return rows


def row_numbers(rows: torch.Tensor) -> list[int]:
    return (rows[:, 0] * 100 + rows[:, 1]).int().tolist()


def write_parts(work: Path, split: str, first: int, stop: int, dtype: str) -> PartSet:
    """Parts of PART_ROWS rows; the row whose number ends in 99 is an outlier."""
    (work / FOLDER).mkdir(parents=True, exist_ok=True)
    for number in range(first, stop):
        rows = numbered_rows(number * PART_ROWS, PART_ROWS).to(getattr(torch, dtype))
        norms = torch.ones(PART_ROWS)
        norms[99] = 50.0
        content = part_bytes([Vectors(rows, norms)])
        Part(split, number).path(work, 1).write_bytes(content)
    return PartSet(work, split, 1, D_MODEL, dtype, first, stop)


def extend_store(store: Path, *, n_train: int, n_eval: int, dtype: str = "float16") -> Manifest:
    """Add rows to the store in `store`, making it if it is not there."""
    store.mkdir(parents=True, exist_ok=True)
    manifest = load_manifest(store)
    added = {
        "train": _segments(store, manifest, "train", n_train, dtype),
        "eval": _segments(store, manifest, "eval", n_eval, dtype),
    }
    if manifest is None:
        manifest = Manifest(
            recipe=recipe(dtype).to_json(),
            layer=1,
            d_model=D_MODEL,
            dtype=dtype,
            median_norm=1.0,
            calibration=calibrate(store, added["train"][0], D_MODEL, dtype),
            names={"model": "test", "revision": None, "text": "test"},
        )
    manifest = replace(
        manifest,
        train=[*manifest.train, *added["train"]],
        eval=[*manifest.eval, *added["eval"]],
    )
    save_manifest(store, manifest)
    return manifest


def _segments(
    store: Path, manifest: Manifest | None, split: str, n_rows: int, dtype: str
) -> list[Segment]:
    if not n_rows:
        return []
    first = manifest.next_part(split) if manifest else 0
    stop = first + -(-n_rows // (PART_ROWS - 1))
    parts = write_parts(store.with_suffix(".work"), split, first, stop, dtype)
    made = write_segment(
        store,
        parts,
        n_rows=n_rows,
        max_norm=5.0,
        recipe=recipe(dtype),
        progress=lambda done: None,
    )
    return [made]


def sorted_bytes(folder: Path) -> dict[str, bytes]:
    """Relative path to content of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def flip_byte(path: Path, offset: int = 7) -> None:
    content = np.fromfile(path, np.uint8)
    content[offset] ^= 0x10
    content.tofile(path)
