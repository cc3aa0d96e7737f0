"""How an autoencoder meets the rest of its latents, and of its batch, when it holds only a part.

The model speaks to this protocol and never to a process group. On one process `Unsharded` makes
every exchange the identity, so the model has a single code path.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from scaling.kernels import Active


class LatentShard(Protocol):
    """Rows [first_latent, first_latent + n_local) of an autoencoder of n_latents.

    All calls are collective: every shard makes them, in the same order.
    """

    first_latent: int
    replicas: int
    """Parts of a batch, of equal size: this one and others'."""
    measures: bool
    """Set by the engine where the step is logged: figures that cost something are taken then."""

    def select(self, candidates: Active, k: int, widest: int) -> Active:
        """Of each token's local candidates, those among its k largest over all shards.

        `candidates` are ordered by value, then id, and carry global ids, so that a tie goes to the
        lowest id wherever it lives; some shard offers `widest` of them, none more. Those selected
        are the first of their row: what is returned is as wide as the longest such part, with
        value zero (and zero gradient) where a row's ends sooner.
        """
        ...

    def gather_counts(self, n_local: int) -> tuple[int, ...]:
        """A count of every shard, the same on each: what collectives may be decided by."""
        ...

    def sum_over_shards(self, partial_BD: Tensor) -> Tensor:
        """Add the shards' partial reconstructions; the gradient passes through unchanged."""
        ...

    def replicated(self, parameter: Tensor) -> Tensor:
        """A parameter that all shards hold, for use with local latents.

        The identity, whose gradient is summed over the shards: use it once a step.
        """
        ...

    def mean_over_replicas(self, statistic: Tensor) -> Tensor:
        """The mean of a statistic of this replica's tokens over all replicas; no gradient."""
        ...

    def largest(self, values: Tensor, *, of_replicas: bool = False) -> Tensor:
        """The elementwise largest of the shards' values (and of the replicas'); no gradient."""
        ...

    def sum_over_all(self, counts: Tensor) -> Tensor:
        """Counts (int64) added up over all shards and all replicas."""
        ...

    def counted_before(self, counts_B: Tensor) -> Tensor:
        """For each token, how much was counted in earlier tokens of the whole batch, and for the
        same token by shards of lower ids, [B] int64."""
        ...

    def report(self) -> dict[str, float]:
        """Figures for the log about the selections since the last call, the same on all shards."""
        ...


class Unsharded:
    """All latents are here, and all tokens."""

    first_latent = 0
    replicas = 1
    measures = False

    def select(self, candidates: Active, k: int, widest: int) -> Active:
        return candidates

    def gather_counts(self, n_local: int) -> tuple[int, ...]:
        return (n_local,)

    def sum_over_shards(self, partial_BD: Tensor) -> Tensor:
        return partial_BD

    def replicated(self, parameter: Tensor) -> Tensor:
        return parameter

    def mean_over_replicas(self, statistic: Tensor) -> Tensor:
        return statistic

    def largest(self, values: Tensor, *, of_replicas: bool = False) -> Tensor:
        return values

    def sum_over_all(self, counts: Tensor) -> Tensor:
        return counts

    def counted_before(self, counts_B: Tensor) -> Tensor:
        return counts_B.cumsum(0) - counts_B

    def report(self) -> dict[str, float]:
        return {}
