"""Which latents are active at which tokens, as pairs: what is true, and what explanations say.

Shapes: R tokens kept of all contexts, P pairs (token, latent), N latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from scaling.evaluation.n2g import Floats, Ints, Trie
from scaling.interchange.model import LoadedAutoencoder

ROWS = 256
"""Tokens encoded at once: bounds the dense values held, [ROWS, N]."""


@dataclass(frozen=True)
class Activity:
    """Pairs with a value above 0, by latent and then by token."""

    latents_P: Ints
    tokens_P: Ints
    """As context * T + token."""
    values_P: Floats
    span: int
    """Above every token."""

    @cached_property
    def keys_P(self) -> Ints:
        """Ascending, one per pair."""
        return self.latents_P * self.span + self.tokens_P

    def where(self, mask_P: np.ndarray) -> Activity:
        return Activity(
            self.latents_P[mask_P], self.tokens_P[mask_P], self.values_P[mask_P], self.span
        )

    def of(self, latent: int) -> tuple[Ints, Floats]:
        """(tokens, values) of a latent."""
        start, end = np.searchsorted(self.latents_P, [latent, latent + 1])
        return self.tokens_P[start:end], self.values_P[start:end]

    def shared_with(self, other: Activity) -> tuple[Ints, Ints]:
        """Indices, in this and in the other, of the pairs that are in both."""
        _, here, there = np.intersect1d(
            self.keys_P, other.keys_P, assume_unique=True, return_indices=True
        )
        return here, there


def pairs(latents: Ints, tokens: Ints, values: Floats, span: int) -> Activity:
    """In order, those above 0."""
    order = np.lexsort((tokens, latents))
    order = order[values[order] > 0]
    return Activity(latents[order], tokens[order], values[order], span)


def activity(autoencoder: LoadedAutoencoder, x_RD: Tensor, tokens_R: Ints, span: int) -> Activity:
    """Of raw vectors [R, D] at the tokens named."""
    latents, tokens, values = [], [], []
    for start in range(0, len(x_RD), ROWS):
        values_BN = autoencoder.latents(x_RD[start : start + ROWS])
        rows, ids = (values_BN > 0).nonzero(as_tuple=True)
        latents.append(ids.cpu().numpy())
        tokens.append(tokens_R[start : start + ROWS][rows.cpu().numpy()])
        values.append(values_BN[rows, ids].float().cpu().numpy())
    return pairs(np.concatenate(latents), np.concatenate(tokens), np.concatenate(values), span)


def simulated(trie: Trie, ids_CT: Ints, tokens_R: Ints) -> Activity:
    """What the patterns say of the tokens named."""
    latents: list[int] = []
    tokens: list[int] = []
    values: list[float] = []
    n_positions = ids_CT.shape[1]
    for token in tokens_R.tolist():
        context, at = divmod(token, n_positions)
        found = trie.matches(ids_CT[context], at)
        latents += found
        values += found.values()
        tokens += [token] * len(found)
    return pairs(
        np.asarray(latents, np.int64),
        np.asarray(tokens, np.int64),
        np.asarray(values, np.float32),
        ids_CT.size,
    )


def scales(said: Activity, true: Activity, n_latents: int) -> Floats:
    """sum(s a) / sum(s^2) of each latent over the tokens of both, [N]; 0 where nothing is said."""
    here, there = said.shared_with(true)
    product_N = np.bincount(
        said.latents_P[here],
        weights=said.values_P[here].astype(np.float64) * true.values_P[there],
        minlength=n_latents,
    )
    weights = said.values_P.astype(np.float64) ** 2
    square_N = np.bincount(said.latents_P, weights=weights, minlength=n_latents)
    return np.divide(product_N, square_N, out=np.zeros(n_latents), where=square_N > 0).astype(
        np.float32
    )


def counts(said: Activity, true: Activity, latents: Ints) -> tuple[Ints, Ints, Ints]:
    """Of each latent named: tokens said to be active, truly active, and both."""
    here, _ = said.shared_with(true)
    return (
        _per_latent(said.latents_P, latents),
        _per_latent(true.latents_P, latents),
        _per_latent(said.latents_P[here], latents),
    )


def _per_latent(latents_P: Ints, latents: Ints) -> Ints:
    n = int(max(latents.max(initial=0), latents_P.max(initial=0))) + 1
    return np.bincount(latents_P, minlength=n)[latents]


RowsToTensor = Callable[[Tensor, Ints], Tensor]
"""Kept vectors [R, D] and their tokens, to what stands in their place."""


def decoded(autoencoder: LoadedAutoencoder, said: Activity) -> RowsToTensor:
    """Reconstruction from these pairs; mean and length of each vector are its own."""
    from scaling.interchange.normalization import normalized, restored

    order = np.argsort(said.tokens_P, kind="stable")
    tokens_P, latents_P, values_P = (
        said.tokens_P[order],
        said.latents_P[order],
        said.values_P[order],
    )

    def replace(x_RD: Tensor, tokens_R: Ints) -> Tensor:
        x_RD = x_RD.to(autoencoder.w_dec)
        recon_RD = autoencoder.b_pre.expand_as(x_RD).clone()
        starts, ends = (np.searchsorted(tokens_P, tokens_R, side) for side in ("left", "right"))
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            ids = torch.from_numpy(latents_P[start:end]).to(x_RD.device)
            values = torch.from_numpy(values_P[start:end]).to(x_RD)
            recon_RD[row] += values @ autoencoder.w_dec[ids]
        _, scale = normalized(x_RD, autoencoder.facts.normalization)
        return restored(recon_RD, scale)

    return replace
