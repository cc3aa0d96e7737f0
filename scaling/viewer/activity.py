"""What the latents of an autoencoder do on text: where each is active, how often, how strongly.

All (token, latent) pairs with a value above 0 are kept, 12 bytes each, sorted by latent; whatever a
page shows of a latent is a slice of them, so numbers are exact, not of a sample.

    density         active tokens / tokens the autoencoder is for
    mean activation of the active tokens
    top examples    contexts in the order of the largest activation within
    random examples contexts drawn evenly, seeded, from the others in which it is active

Shapes: C contexts, T tokens per context, N latents, E active pairs, P pairs of a latent and a
context in which it is active.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scaling.autoencoder.code import Dense
from scaling.evaluation.material import Material, TextBatch
from scaling.evaluation.metric import Told
from scaling.interchange.model import LoadedAutoencoder

Array = NDArray[Any]
N_BINS = 24


@dataclass(frozen=True)
class Activity:
    """Active pairs, sorted by latent and then by token."""

    latent_E: Array
    """int32."""
    token_E: Array
    """int32: context * T + position."""
    value_E: Array
    """float32, above 0, as the autoencoder makes it of a normalized activation."""
    n_latents: int
    n_tokens: int
    """That the autoencoder is for."""
    context: int
    """T."""

    @property
    def counts_N(self) -> Array:
        """Active tokens of each latent, int64."""
        return np.bincount(self.latent_E, minlength=self.n_latents)

    @property
    def density_N(self) -> Array:
        return self.counts_N / max(self.n_tokens, 1)

    @property
    def largest_N(self) -> Array:
        """Largest activation of each latent, float32; 0 of one that was never active."""
        largest_N = np.zeros(self.n_latents, np.float32)
        np.maximum.at(largest_N, self.latent_E, self.value_E)
        return largest_N

    @property
    def mean_N(self) -> Array:
        """Mean activation of the active tokens; 0 of a latent that was never active."""
        sums_N = np.bincount(self.latent_E, self.value_E.astype(np.float64), self.n_latents)
        return sums_N / np.maximum(self.counts_N, 1)

    def histograms(self) -> Array:
        """Active tokens in N_BINS equal steps from 0 to the latent's largest value, [N, bins]."""
        share_E = self.value_E / self.largest_N[self.latent_E]
        bin_E = np.minimum((share_E * N_BINS).astype(np.int64), N_BINS - 1)
        flat = np.bincount(
            self.latent_E * np.int64(N_BINS) + bin_E, minlength=self.n_latents * N_BINS
        )
        return flat.reshape(self.n_latents, N_BINS)

    def contexts(self) -> Contexts:
        """The pairs of a latent and a context, in the order of latent and context."""
        context_E = self.token_E // self.context
        new_E = np.ones(len(self.latent_E), bool)
        new_E[1:] = (np.diff(self.latent_E) != 0) | (np.diff(context_E) != 0)
        start_P = np.flatnonzero(new_E)
        peak_P = np.maximum.reduceat(self.value_E, start_P) if len(start_P) else self.value_E
        return Contexts(
            latent_P=self.latent_E[start_P],
            context_P=context_E[start_P],
            start_P=start_P,
            end_P=np.append(start_P, len(self.latent_E))[1:],
            peak_P=peak_P,
        )


@dataclass(frozen=True)
class Contexts:
    """Each context in which a latent is active, with where its active pairs are."""

    latent_P: Array
    context_P: Array
    start_P: Array
    end_P: Array
    peak_P: Array
    """Largest activation within."""

    def top(self, n: int) -> Array:
        """Indices [<= N * n] of the contexts with the largest peaks, by latent, largest first."""
        order_P = np.lexsort((self.context_P, -self.peak_P, self.latent_P))
        return _first_of_each(self.latent_P, order_P, n)

    def drawn(self, n: int, seed: int, but: Array) -> Array:
        """As many indices of others than `but`, drawn evenly, in the order of their peaks."""
        left = np.setdiff1d(np.arange(len(self.latent_P)), but)
        chance = np.random.default_rng(seed).random(len(self.latent_P))[left]
        order = left[np.lexsort((chance, self.latent_P[left]))]
        drawn = _first_of_each(self.latent_P, order, n)
        return drawn[np.lexsort((-self.peak_P[drawn], self.latent_P[drawn]))]


def _first_of_each(latent_P: Array, order: Array, n: int) -> Array:
    """The first n of each latent in an order that is by latent first."""
    latents = latent_P[order]
    begins = np.searchsorted(latents, latents)  # of each entry, where its latent's begin
    return order[np.arange(len(order)) - begins < n]


def observe(autoencoder: LoadedAutoencoder, material: Material, told: Told) -> Activity:
    """All active pairs on the material; `told` gets contexts done, and of how many."""
    n_contexts, context = material.ids_CT.shape
    parts: list[tuple[Array, Array, Array]] = []
    first, n_tokens = 0, 0
    for batch in material.batches():
        parts.append(_active_pairs(autoencoder, batch, first * context))
        n_tokens += int(batch.kept_CT.sum())
        first += len(batch.ids_CT)
        told(first, n_contexts)
    latent_E, token_E, value_E = (np.concatenate(column) for column in zip(*parts, strict=True))
    order_E = np.argsort(latent_E, kind="stable")
    n_latents = autoencoder.facts.n_latents
    return Activity(
        latent_E[order_E], token_E[order_E], value_E[order_E], n_latents, n_tokens, context
    )


def _active_pairs(
    autoencoder: LoadedAutoencoder, batch: TextBatch, first_token: int
) -> tuple[Array, Array, Array]:
    """Latents, tokens and values of the active pairs, in the order of the tokens."""
    kept_CT = batch.kept_CT
    code, _ = autoencoder.encode(batch.residual_CTD[kept_CT].float())
    if isinstance(code, Dense):
        row, latent = torch.nonzero(code.values_BN > 0, as_tuple=True)
        value = code.values_BN[row, latent]
    else:
        row, rank = torch.nonzero(code.values_BK > 0, as_tuple=True)
        latent, value = code.indices_BK[row, rank], code.values_BK[row, rank]
    token = kept_CT.flatten().nonzero()[:, 0][row] + first_token
    return (
        latent.to("cpu", torch.int32).numpy(),
        token.to("cpu", torch.int32).numpy(),
        value.to("cpu", torch.float32).numpy(),
    )
