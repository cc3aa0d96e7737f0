"""How an autoencoder meets the rest of its latents, when it holds only some of them.

The model speaks to this protocol and never to a process group. On one process `Unsharded` makes
every exchange the identity, so the model has a single code path.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from scaling.kernels import Active


class LatentShard(Protocol):
    """Rows [first_latent, first_latent + n_local) of an autoencoder of n_latents."""

    first_latent: int

    def select(self, candidates: Active, k: int) -> Active:
        """Of each token's local candidates, those among its k largest over all shards.

        `candidates` carry global ids, so that a tie goes to the lowest id wherever it lives. The
        layout stays: values of candidates that do not make it become zero (with zero gradient).
        """
        ...

    def sum_counts(self, n_local: int) -> int:
        """A count over all shards, the same on each: what collectives may be decided by."""
        ...

    def sum_over_shards(self, partial_BD: Tensor) -> Tensor:
        """Add the shards' partial reconstructions; the gradient passes through unchanged."""
        ...


class Unsharded:
    """All latents are here."""

    first_latent = 0

    def select(self, candidates: Active, k: int) -> Active:
        return candidates

    def sum_counts(self, n_local: int) -> int:
        return n_local

    def sum_over_shards(self, partial_BD: Tensor) -> Tensor:
        return partial_BD
