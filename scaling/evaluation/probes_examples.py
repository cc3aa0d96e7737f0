"""How a text becomes one example of a probe: the residual stream at its last kept token.

The last `tokens` tokens of a text are read as one context, and the example is the vector after the
autoencoder's layer at the last of them that autoencoders are for (not a first position, no
outlier). The last token, since that is where the model has read all of a text and where tasks about
a name or a phrase end, and one token, since an autoencoder is made for vectors of tokens: a mean
over tokens is none. Vectors are kept as the model has them, so that they serve runs of any
normalization; each task's are written down once, so that an interrupted evaluation loses at most
one task.

Shapes: C texts in a batch, T tokens, D = d_model, E examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from scaling.activations.subject import Tokenizer
from scaling.evaluation.kept import kept
from scaling.evaluation.material import Material
from scaling.evaluation.tasks import Labelled, Task, split

VERSION = 1
"""Raise it when the same texts would give other examples."""
BATCH_TOKENS = 2048
CHARACTERS_PER_TOKEN = 16
"""No text has so many on average: what is cut off before a text becomes tokens."""


@dataclass(frozen=True)
class Examples:
    """The vectors of a task, float32 [E, D], as the subject model has them, with their labels."""

    train_ED: Tensor
    train_labels_E: Tensor
    """bool, as are the others."""
    train_documents_E: Tensor
    """int64: equal where two examples are of one document."""
    test_ED: Tensor
    test_labels_E: Tensor
    n_documents: Tensor
    """int64, a scalar: of both sides."""
    n_left: Tensor
    """int64, a scalar: texts of which no token is kept."""

    @property
    def has_both_labels(self) -> bool:
        return all(len(y.unique()) == 2 for y in (self.train_labels_E, self.test_labels_E))


def examples(material: Material, task: Task, n_texts: int, n_tokens: int) -> Examples:
    """The examples of a task: of at most `n_texts` texts, half of them to train."""

    def make() -> dict[str, Tensor]:
        made = _make(material, task, n_texts, n_tokens)
        return {field.name: getattr(made, field.name) for field in fields(Examples)}

    what = {"version": VERSION, "task": task.identity(), "texts": n_texts, "tokens": n_tokens}
    return Examples(**kept(material, "probes", what, make))


def _make(material: Material, task: Task, n_texts: int, n_tokens: int) -> Examples:
    parts = split(task.read(), n_texts)
    train_ED, train_kept = vectors(material, [one.text for one in parts.train], n_tokens)
    test_ED, test_kept = vectors(material, [one.text for one in parts.test], n_tokens)
    train = _of(parts.train, train_kept)
    test = _of(parts.test, test_kept)
    number = {document: n for n, document in enumerate(dict.fromkeys(o.document for o in train))}
    n_all = len(parts.train) + len(parts.test)
    return Examples(
        train_ED=train_ED,
        train_labels_E=torch.tensor([one.label for one in train], dtype=torch.bool),
        train_documents_E=torch.tensor([number[one.document] for one in train], dtype=torch.int64),
        test_ED=test_ED,
        test_labels_E=torch.tensor([one.label for one in test], dtype=torch.bool),
        n_documents=torch.tensor(parts.n_documents),
        n_left=torch.tensor(n_all - len(train) - len(test)),
    )


def _of(texts: Sequence[Labelled], kept: Tensor) -> list[Labelled]:
    return [one for one, is_kept in zip(texts, kept.tolist(), strict=True) if is_kept]


def vectors(material: Material, texts: Sequence[str], n_tokens: int) -> tuple[Tensor, Tensor]:
    """The vector of each text that has a kept token, float32 [E, D] in the order of the texts, and
    which texts have one, bool."""
    tokenizer = material.once("tokenizer", lambda m: Tokenizer(m.model_folder))
    ends = [text[-CHARACTERS_PER_TOKEN * n_tokens :] for text in texts]
    ids = [one[-n_tokens:] for one in tokenizer.encode(ends)] if ends else []
    found: dict[int, Tensor] = {}
    for batch in _batches(ids):
        found.update(_last_kept(material, ids, batch))
    kept = torch.tensor([number in found for number in range(len(texts))], dtype=torch.bool)
    ordered = [found[number] for number in sorted(found)]
    d_model = material.subject.unembedding().shape[1]
    return (torch.stack(ordered) if ordered else torch.empty(0, d_model)), kept


def _batches(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of texts that are read together: of about the same length, so that little is
    padded."""
    by_length = sorted((number for number, one in enumerate(ids) if one), key=lambda n: len(ids[n]))
    batch: list[int] = []
    for number in by_length:
        if (len(batch) + 1) * len(ids[number]) > BATCH_TOKENS and batch:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _last_kept(
    material: Material, ids: Sequence[Sequence[int]], batch: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Number and vector of those of the batch that have a kept token."""
    length = max(len(ids[number]) for number in batch)
    ids_CT = torch.zeros(len(batch), length, dtype=torch.int64)
    is_text_CT = torch.zeros(len(batch), length, dtype=torch.bool)
    for row, number in enumerate(batch):
        ids_CT[row, : len(ids[number])] = torch.tensor(ids[number])
        is_text_CT[row, : len(ids[number])] = True
    # Padding comes after a text, where the model cannot look back from.
    residual_CTD = material.subject.residual(ids_CT)
    kept_CT = material.kept(residual_CTD).cpu() & is_text_CT
    last_C = (kept_CT * torch.arange(1, length + 1)).amax(dim=1) - 1
    for row, number in enumerate(batch):
        if last_C[row] >= 0:
            yield number, residual_CTD[row, int(last_C[row])].float().cpu()
