"""Live activations: a subject model makes training vectors as training asks for them.

The stream is the concatenation of blocks, each computed from a number alone, so that any step can
be asked for at any time and a run resumes by its step. While one block is trained on, a background
thread makes the next. Held-out set, calibration and initial sample come from a small store.

Shapes: B tokens in a batch, D = d_model.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scaling.activations.manifest import load_manifest
from scaling.activations.prefetch import Ahead, Background
from scaling.activations.recipe import Recipe
from scaling.activations.source import SourceSpec
from scaling.activations.store import StoreSource
from scaling.activations.stream_block import Block, BlockKey, BlockMaker, StreamCounts
from scaling.activations.stream_contexts import read_contexts
from scaling.activations.stream_spec import check_same, head_of, shape_of

if TYPE_CHECKING:
    from scaling.activations.manifest import Manifest

KEPT_BLOCKS = 2
"""Runs of one process that are a few steps apart, at the edge of a block, need both."""


class StreamSource:
    """The live stream that `spec` names; model and thread begin with the first training batch."""

    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec
        head = head_of(spec)
        self._head = StoreSource(head)  # checks that the store is the planned one
        manifest = load_manifest(Path(head.params["path"]))
        assert manifest is not None
        check_same(spec, Recipe(**manifest.recipe))
        self.calibration = self._head.calibration
        self._manifest = manifest
        self._shape = shape_of(spec)
        self._maker: BlockMaker | None = None
        self._blocks: Ahead[BlockKey, Block] | None = None

    @property
    def counts(self) -> StreamCounts:
        """What was made so far, for all runs that share this source."""
        return StreamCounts() if self._maker is None else self._maker.counts

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
        del shuffle_block  # vectors are shuffled within blocks already, and blocks in memory
        part_tokens = batch_tokens // replicas
        start = step * batch_tokens + replica * part_tokens
        return torch.cat(list(self._pieces(seed, start, start + part_tokens)))

    def eval_batches(self, batch_tokens: int) -> Iterator[Tensor]:
        return self._head.eval_batches(batch_tokens)

    def sample(self, n: int) -> Tensor:
        return self._head.sample(n)

    def _pieces(self, seed: int, start: int, stop: int) -> Iterator[Tensor]:
        """Vectors [start, stop) of the stream, block by block."""
        shape = self._shape
        while start < stop:
            epoch, position = divmod(start, shape.n_train)
            number = shape.block_of(position)
            first, end = shape.start(number), shape.start(number + 1)
            block = self._block(BlockKey(seed, epoch, number))
            count = min(end - position, stop - start)
            yield block.vectors(position - first, position - first + count)
            start += count

    def _block(self, key: BlockKey) -> Block:
        if self._blocks is None:
            self._blocks = self._begin()
        last = key.block + 1 == self._shape.n_blocks
        following = (key.epoch + 1, 0) if last else (key.epoch, key.block + 1)
        return self._blocks.get(key, BlockKey(key.seed, *following))

    def _begin(self) -> Ahead[BlockKey, Block]:
        """Load the model, here: loading sets torch's default dtype for all threads meanwhile."""
        self._maker = _maker(self.spec, self._manifest)
        background = Background("activations")
        weakref.finalize(self, background.close)  # also when the process ends
        # One thread, as in a harvest: bits depend on the number, and training has the other cores.
        # It is a thread's own setting, but also what a new thread begins with: put that back.
        threads = torch.get_num_threads()
        background.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(threads)
        return Ahead(background, self._maker.make, KEPT_BLOCKS)


def _maker(spec: SourceSpec, manifest: Manifest) -> BlockMaker:
    from scaling.activations.subject import ModelLocation, Subject, local_folder

    recipe = Recipe(**manifest.recipe)
    location = ModelLocation(spec.params["model_path"], spec.params["revision"])
    subject = Subject(
        local_folder(location),
        layers=(manifest.layer,),
        dtype=recipe.model_dtype,
        device=_device(),
    )
    return BlockMaker(
        subject=subject,
        contexts=read_contexts(Path(spec.params["contexts"])),
        recipe=recipe,
        shape=shape_of(spec),
        layer=manifest.layer,
        max_norm=recipe.outlier_factor * manifest.median_norm,
        d_model=spec.d_model,
    )


def _device() -> str:
    """This rank's GPU, or where there is none the processor."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


_open: weakref.WeakValueDictionary[str, StreamSource] = weakref.WeakValueDictionary()


def open_stream(spec: SourceSpec) -> StreamSource:
    """The stream that `spec` names; runs of one process share it, with its model and blocks.

    Raises:
        UserError: store, token ids or model are gone, or are others than planned.
    """
    name = repr(spec)
    source = _open.get(name)
    if source is None:
        source = _open[name] = StreamSource(spec)
    return source
