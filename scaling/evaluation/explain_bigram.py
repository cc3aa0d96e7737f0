"""A bigram model of the training text: what explanations of a subject model have to beat.

    P(b | a) = (c(a, b) + n(a) P(b)) / (c(a) + n(a))        P(b) = (c(b) + n / V) / (c + n)

c counts pairs within contexts (c(b): as a second token), n(a) is the number of tokens seen after a
and n that of all seen: interpolation after Witten & Bell 1991, which has nothing to tune.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.activations.contexts import Contexts, tokenize, with_total
from scaling.activations.stream_contexts import has_contexts, read_contexts, write_contexts
from scaling.evaluation.material import Material
from scaling.evaluation.n2g import Ints


@dataclass(frozen=True)
class Bigrams:
    """Counts. V = vocabulary, P = different pairs seen."""

    pairs_P: Ints
    """first * V + second, ascending."""
    count_P: Ints
    first_V: Ints
    """Pairs that begin with a token."""
    second_V: Ints
    """Pairs that end with a token."""
    followers_V: Ints
    """Different tokens seen after a token."""

    def cross_entropy(self, first_R: Ints, second_R: Ints) -> NDArray[np.float64]:
        """-ln P(second | first) in nats, [R]."""
        vocabulary = len(self.first_V)
        seen = int((self.second_V > 0).sum())
        unigram_R = (self.second_V[second_R] + seen / vocabulary) / (self.second_V.sum() + seen)
        wanted_R = first_R * vocabulary + second_R
        at_R = np.minimum(np.searchsorted(self.pairs_P, wanted_R), len(self.pairs_P) - 1)
        count_R = np.where(self.pairs_P[at_R] == wanted_R, self.count_P[at_R], 0)
        total_R, after_R = self.first_V[first_R], self.followers_V[first_R]
        with np.errstate(invalid="ignore"):
            given_R = (count_R + after_R * unigram_R) / (total_R + after_R)
        return -np.log(np.where(total_R > 0, given_R, unigram_R))


def bigrams(contexts_CT: Contexts, vocabulary: int) -> Bigrams:
    """Counts of all neighbours within contexts."""
    first = contexts_CT[:, :-1].astype(np.int64).ravel()
    second = contexts_CT[:, 1:].astype(np.int64).ravel()
    pairs_P, count_P = np.unique(first * vocabulary + second, return_counts=True)
    return Bigrams(
        pairs_P,
        count_P,
        np.bincount(first, minlength=vocabulary),
        np.bincount(second, minlength=vocabulary),
        np.bincount(pairs_P // vocabulary, minlength=vocabulary),
    )


def training_contexts(material: Material, n_contexts: int) -> Contexts:
    """The first contexts of the training text, or all there are; tokenized once and kept."""
    request = material.request
    folder = request.data_dir / "activations" / f"{request.recipe.id}-training{n_contexts}"
    if not has_contexts(folder):
        from scaling.activations.subject import Tokenizer

        wanted = {"train": n_contexts, "eval": 0}
        encoder = Tokenizer(material.model_folder)
        with material.stage("training text tokenized, in characters") as told:
            progress = with_total(request.text, told)
            found = tokenize(request.text, encoder, request.recipe, wanted, progress)
        write_contexts(folder, found.contexts["train"][:n_contexts])
    return read_contexts(folder)
