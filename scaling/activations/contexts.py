"""Text to contexts: documents are tokenized, cut into contexts, and put in a seeded order.

A context is `context` consecutive tokens of one document; the rest of a document, shorter than
that, is left out. Documents are taken in slabs of about 64 million characters. Within a slab the
contexts of each split are shuffled, so a small harvest from a small text sees all its documents,
and an unbounded text is read only as far as needed. How much is wanted does not change the order.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scaling.activations.manifest import SPLITS
from scaling.activations.recipe import Recipe
from scaling.activations.text import TextSource, document_hash, is_held_out
from scaling.storage.atomic import read_json, write_bytes, write_json

SLAB_CHARACTERS = 64_000_000
BATCH_CHARACTERS = 2_000_000
"""Tokenized at once: bounds memory, and how often progress is told."""

Contexts = NDArray[np.int32]
Documents = NDArray[np.uint64]
TOKEN_ID_BYTES = 4


class Encoder(Protocol):
    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass
class TokenizedText:
    """The first contexts of each split, int32 [n, context], in harvest order."""

    contexts: dict[str, Contexts]
    exhausted: bool
    """The text holds no more."""
    eval_documents: Documents | None = None
    """Which document each held-out context is of, by a hash of its text, uint64 [n]; None of what
    was loaded."""

    def suffices(self, wanted: dict[str, int]) -> bool:
        """Whether every split has the wanted number of contexts, or all there are."""
        return self.exhausted or all(len(self.contexts[split]) >= wanted[split] for split in SPLITS)


def tokenize(
    text: TextSource,
    encoder: Encoder,
    recipe: Recipe,
    wanted: dict[str, int],
    progress: Callable[[int], None],
) -> TokenizedText:
    """At least the wanted contexts of each split, or all there are; `progress` gets characters."""
    found: dict[str, list[Contexts]] = {split: [] for split in SPLITS}
    documents: list[Documents] = [np.empty(0, np.uint64)]
    exhausted = True
    for number, slab in enumerate(_slabs(text.documents(), recipe, encoder, progress)):
        for which, split in enumerate(SPLITS):
            rng = np.random.default_rng([recipe.seed, which, number])
            contexts = slab.stacked(split, recipe.context)
            order = rng.permutation(len(contexts))
            found[split].append(contexts[order])
            if split == "eval":
                documents.append(np.array(slab.eval_documents, np.uint64)[order])
        exhausted = any(sum(map(len, found[split])) < wanted[split] for split in SPLITS)
        if not exhausted:
            break
    return TokenizedText(_joined(found, recipe.context), exhausted, np.concatenate(documents))


def with_total(text: TextSource, told: Callable[[int, int], None]) -> Callable[[int], None]:
    """A `progress` of `tokenize` that tells how many characters there may be, too: to the end of
    the slab, or of the text where it is known to be shorter."""
    size = text.most_characters()

    def progress(done: int) -> None:
        slab_end = -(-done // SLAB_CHARACTERS) * SLAB_CHARACTERS
        told(done, slab_end if size is None else max(done, min(slab_end, size)))

    return progress


def save_tokenized(folder: Path, tokenized: TokenizedText) -> None:
    """Keep the contexts for harvesting processes and for a resumed harvest."""
    for split, contexts in tokenized.contexts.items():
        content = io.BytesIO()  # written to a file, numpy would not tell why it failed
        np.save(content, contexts)
        write_bytes(contexts_path(folder, split), content.getvalue())
    write_json(folder / "contexts.json", {"exhausted": tokenized.exhausted})


def load_tokenized(folder: Path) -> TokenizedText | None:
    """What `save_tokenized` kept, memory-mapped; None where it did not finish."""
    done = folder / "contexts.json"
    if not done.is_file():
        return None
    contexts = {split: np.load(contexts_path(folder, split), mmap_mode="r") for split in SPLITS}
    return TokenizedText(contexts, read_json(done)["exhausted"])


def contexts_path(folder: Path, split: str) -> Path:
    return folder / f"contexts-{split}.npy"


@dataclass
class _Slab:
    """The contexts of one slab's documents, in document order."""

    pieces: dict[str, list[Contexts]] = field(
        default_factory=lambda: {split: [] for split in SPLITS}
    )
    eval_documents: list[int] = field(default_factory=list)
    """Of each held-out context."""

    def add(self, documents: list[str], recipe: Recipe, encoder: Encoder) -> None:
        for document, ids in zip(documents, encoder.encode(documents), strict=True):
            split = "eval" if is_held_out(document, recipe.eval_fraction) else "train"
            n_contexts = len(ids) // recipe.context
            whole = np.asarray(ids[: n_contexts * recipe.context], np.int32)
            self.pieces[split].append(whole.reshape(n_contexts, recipe.context))
            if split == "eval":
                self.eval_documents += [document_hash(document)] * n_contexts

    def stacked(self, split: str, context: int) -> Contexts:
        return np.concatenate([np.empty((0, context), np.int32), *self.pieces[split]])


def _slabs(
    documents: Iterator[str], recipe: Recipe, encoder: Encoder, progress: Callable[[int], None]
) -> Iterator[_Slab]:
    slab, in_slab, done = _Slab(), 0, 0
    for batch in _batches(documents):
        slab.add(batch, recipe, encoder)
        n_characters = sum(map(len, batch))
        in_slab += n_characters
        done += n_characters
        progress(done)
        if in_slab >= SLAB_CHARACTERS:
            yield slab
            slab, in_slab = _Slab(), 0
    yield slab


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document)
        if held >= BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _joined(found: dict[str, list[Contexts]], context: int) -> dict[str, Contexts]:
    empty = np.empty((0, context), np.int32)
    return {split: np.concatenate([empty, *pieces]) for split, pieces in found.items()}
