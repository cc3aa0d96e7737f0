"""A harvest as the user asked for it: where it reads and writes, and what is still missing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.activations import embedded
from scaling.activations.contexts import TOKEN_ID_BYTES
from scaling.activations.manifest import NUMPY_DTYPES, SPLITS, load_manifest
from scaling.activations.parts import NORM_BYTES
from scaling.activations.recipe import Recipe, is_local_model, make_recipe
from scaling.activations.stream_contexts import has_contexts
from scaling.activations.stream_shape import StreamShape, stream_shape
from scaling.activations.text import TextSource, find_text
from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.config import HarvestConfig

EMBEDDED_MODEL_BYTES = 273_000_000
HEAD_TOKENS = 65_536
"""Training vectors that a live stream stores, at most: what it is calibrated on."""


@dataclass(frozen=True)
class HarvestRequest:
    """Knows paths and sizes; computes nothing and writes nothing."""

    recipe: Recipe
    text: TextSource
    model: str
    revision: str | None
    layer: int
    """The layer whose store is the source."""
    layers: tuple[int, ...]
    """All layers to store, ascending."""
    wanted: dict[str, int]
    """Split to vectors wanted."""
    processes: int | None
    data_dir: Path
    nodes: int = 1
    """Machines that make parts: this one and its helpers."""
    shape: StreamShape | None = None
    """Of a live stream, which stores its first vectors only; None = all are stored."""

    @property
    def work(self) -> Path:
        """Folder of the lease and of unfinished work; shared by all layers of the recipe."""
        return self.data_dir / "activations" / f"{self.recipe.id}.work"

    def store(self, layer: int) -> Path:
        # A stream's own: the calibration of a store that grew depends on how it grew.
        head = "" if self.shape is None else f"-head{self.wanted['train']}"
        return self.data_dir / "activations" / f"{self.recipe.id}-layer{layer}{head}"

    @property
    def contexts(self) -> Path:
        """Folder of the token ids that a stream reads."""
        assert self.shape is not None
        name = f"{self.recipe.id}-contexts{self.shape.n_contexts}"
        return self.data_dir / "activations" / name

    @property
    def n_train(self) -> int:
        """Training vectors of an epoch, stored or not."""
        return self.wanted["train"] if self.shape is None else self.shape.n_train

    def is_complete(self) -> bool:
        """Whether all is there that runs will read."""
        if self.missing():
            return False
        if self.shape is None:
            return True
        return has_contexts(self.contexts) and not self._conversion_bytes()

    def missing(self) -> dict[int, dict[str, int]]:
        """Layer to vectors missing by split; layers that lack nothing are left out."""
        lacking = {layer: self._missing_in(layer) for layer in self.layers}
        return {layer: rows for layer, rows in lacking.items() if any(rows.values())}

    def _missing_in(self, layer: int) -> dict[str, int]:
        manifest = load_manifest(self.store(layer))
        held = {split: manifest.n_rows(split) if manifest else 0 for split in SPLITS}
        return {split: max(0, self.wanted[split] - held[split]) for split in SPLITS}

    @property
    def names(self) -> dict[str, str | None]:
        """Model and text for people; no identity depends on them."""
        packaged_model = self.model == embedded.EMBEDDED
        packaged_text = self.text.name == embedded.EMBEDDED
        return {
            "model": embedded.MODEL_NAME if packaged_model else self.model,
            "revision": self.revision,
            "text": embedded.TEXT_NAME if packaged_text else self.text.name,
        }

    @property
    def model_path(self) -> str:
        """The model's folder with `~` spelled out, or its name on the hub."""
        return str(Path(self.model).expanduser()) if is_local_model(self.model) else self.model

    @cached_property
    def model_shape(self) -> tuple[int, int]:
        """(d_model, number of blocks) of the subject model."""
        if self.model == embedded.EMBEDDED:
            return embedded.D_MODEL, embedded.N_LAYERS
        from scaling.activations.subject import ModelLocation, model_shape

        return model_shape(ModelLocation(self.model_path, self.revision))

    @cached_property
    def subject_params(self) -> int:
        """Parameters of the subject model, tied ones once."""
        if self.model == embedded.EMBEDDED:
            return embedded.N_PARAMS
        from scaling.activations.subject import ModelLocation, n_params

        return n_params(ModelLocation(self.model_path, self.revision))

    def check_layers(self) -> None:
        """Raises UserError for a layer that the model does not have."""
        _, n_layers = self.model_shape
        for layer in self.layers:
            if not 1 <= layer <= n_layers:
                key = "layer" if layer == self.layer else "also_layers"
                raise UserError(
                    f"activations.{key}={layer}: {self.model} has {n_layers} blocks; the residual "
                    f"stream can be taken after block 1 to {n_layers}."
                )

    def disk_bytes_needed(self) -> int:
        """Peak use of the disk by what is missing: parts and shards side by side."""
        d_model, _ = self.model_shape
        row_bytes = d_model * NUMPY_DTYPES[self.recipe.store_dtype].itemsize
        n_rows = sum(sum(rows.values()) for rows in self.missing().values())
        part_rows = self.recipe.part_contexts * self.recipe.rows_per_context
        surplus_rows = 2 * len(self.layers) * part_rows
        vectors = n_rows * (2 * row_bytes + NORM_BYTES) + surplus_rows * row_bytes
        return vectors + self._context_bytes() + self._conversion_bytes()

    def _context_bytes(self) -> int:
        if self.shape is None or has_contexts(self.contexts):
            return 0
        return self.shape.n_contexts * self.recipe.context * TOKEN_ID_BYTES

    def _conversion_bytes(self) -> int:
        converts = (
            self.model == embedded.EMBEDDED and not embedded.model_folder(self.data_dir).exists()
        )
        return EMBEDDED_MODEL_BYTES if converts else 0

    def disk_bytes_free(self) -> int:
        folder = self.data_dir.absolute()
        existing = next(path for path in [folder, *folder.parents] if path.exists())
        return shutil.disk_usage(existing).free

    def check_disk(self) -> None:
        """Raises UserError when the disk cannot hold what is missing."""
        # Parts of an interrupted harvest are on the disk already.
        there = sum(path.stat().st_size for path in self.work.rglob("*") if path.is_file())
        needed, free = max(0, self.disk_bytes_needed() - there), self.disk_bytes_free()
        if needed > free:
            raise UserError(
                f"harvesting activations.max_tokens={self.n_train} needs about "
                f"{needed:,} bytes in data_dir={self.data_dir}, which has {free:,} free: lower "
                "max_tokens, free space, or point data_dir elsewhere."
            )


def make_request(config: HarvestConfig, data_dir: Path, *, nodes: int = 1) -> HarvestRequest:
    """What `config` asks for.

    Raises:
        UserError: a value out of range, a model folder or a text that does not exist.
    """
    for key in ("max_tokens", "eval_tokens"):
        if getattr(config, key) < 1:
            raise UserError(f"activations.{key}={getattr(config, key)} must be at least 1.")
    if config.processes is not None and config.processes < 1:
        raise UserError(f"activations.processes={config.processes} must be at least 1, or null.")
    text = find_text(config.text, column=config.text_column, split=config.text_split)
    recipe = make_recipe(config, text)
    shape = _shape(config, recipe) if config.stream else None
    n_stored = config.max_tokens if shape is None else min(config.max_tokens, HEAD_TOKENS)
    return HarvestRequest(
        recipe=recipe,
        text=text,
        model=config.model,
        revision=config.revision,
        layer=config.layer,
        layers=tuple(sorted({config.layer, *config.also_layers})),
        wanted={"train": n_stored, "eval": config.eval_tokens},
        processes=config.processes,
        data_dir=data_dir,
        nodes=nodes,
        shape=shape,
    )


def _shape(config: HarvestConfig, recipe: Recipe) -> StreamShape:
    if config.also_layers:
        raise UserError(
            f"activations.also_layers={list(config.also_layers)} names further layers to store, "
            "and activations.stream=true stores none: leave one of the two out."
        )
    return stream_shape(config.max_tokens, config.buffer_tokens, recipe)
