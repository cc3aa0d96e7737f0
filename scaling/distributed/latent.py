"""A shard of the latents: `scaling.autoencoder.shard.LatentShard` over the axes of a mesh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scaling.budget import candidate_width, capacity_width
from scaling.distributed import selection
from scaling.kernels import Active
from scaling.train.mesh import Axis, Mesh


@dataclass
class SelectionCounts:
    """Since they were last read."""

    tokens: int = 0
    redone: int = 0
    """Tokens whose candidates had to be exchanged again."""
    counted_latents: int = 0
    """Latents, of all shards, that an exact selection holds where lost ones were counted."""
    lost_latents: int = 0
    """Of those, how many a limited capacity left out."""


class MeshShard:
    """See `scaling.autoencoder.shard.LatentShard`."""

    def __init__(
        self,
        mesh: Mesh,
        n_latents: int,
        *,
        exchange: str = "gather",
        capacity_factor: float | None = None,
    ) -> None:
        self.mesh = mesh
        self.n_local = len(mesh.local_rows(n_latents))
        self.first_latent = mesh.local_rows(n_latents).start
        self.exchange = exchange
        self.capacity_factor = capacity_factor
        self.counts = SelectionCounts()
        self.measures = False
        self.replicas = mesh.dp.size

    def select(self, candidates: Active, k: int, widest: int) -> Active:
        if self.mesh.latent.size == 1:
            return candidates
        values_BW, ids_BW = _padded(candidates, widest)
        exchange = self._exchange(k, widest)
        kept_B, n_redone = exchange(values_BW, ids_BW, k, self.mesh.latent)
        self.counts.tokens += len(kept_B)
        self.counts.redone += n_redone
        if self.capacity_factor is not None and self.measures:
            self._count_lost(values_BW, k, self._capacity(k, widest))
        return _first(candidates, kept_B)

    def gather_counts(self, n_local: int) -> tuple[int, ...]:
        count = torch.tensor([n_local], device=self.mesh.device)
        return tuple(self.mesh.latent.gather(count, "dead counts").flatten().tolist())

    def sum_over_shards(self, partial_BD: Tensor) -> Tensor:
        return _SumForward.apply(partial_BD, self.mesh.latent)  # type: ignore[return-value]

    def replicated(self, parameter: Tensor) -> Tensor:
        return _SumBackward.apply(parameter, self.mesh.latent)  # type: ignore[return-value]

    def mean_over_replicas(self, statistic: Tensor) -> Tensor:
        total = self.mesh.dp.sum_(statistic.detach().clone(), "AuxK statistics")
        return total / self.mesh.dp.size

    def largest(self, values: Tensor, *, of_replicas: bool = False) -> Tensor:
        of_shards = self.mesh.latent.max_(values.detach().clone(), "largest values")
        return self.mesh.dp.max_(of_shards, "largest values") if of_replicas else of_shards

    def sum_over_all(self, counts: Tensor) -> Tensor:
        in_shards = self.mesh.latent.sum_(counts.clone(), "selection counts")
        return self.mesh.dp.sum_(in_shards, "selection counts")

    def counted_before(self, counts_B: Tensor) -> Tensor:
        counts_SB = self.mesh.latent.gather(counts_B, "ties")
        token_B = counts_SB.sum(dim=0)
        replica_R = self.mesh.dp.gather(token_B.sum().reshape(1), "ties").flatten()
        earlier = replica_R[: self.mesh.dp.index].sum()
        lower_B = counts_SB[: self.mesh.latent.index].sum(dim=0)
        return earlier + token_B.cumsum(0) - token_B + lower_B

    def report(self) -> dict[str, float]:
        counts, self.counts = self.counts, SelectionCounts()
        shares = {}
        if counts.tokens:
            shares["select/redone_fraction"] = counts.redone / counts.tokens
        if counts.counted_latents:
            shares["select/lost_fraction"] = counts.lost_latents / counts.counted_latents
        return shares

    def _exchange(self, k: int, widest: int) -> selection.Exchange:
        if self.capacity_factor is not None:
            return selection.limited(self._capacity(k, widest))
        match self.exchange:
            case "gather":
                return selection.gather
            case "candidates":
                return selection.candidates(candidate_width(k, widest, self.mesh.latent.size))
            case "butterfly":
                return selection.butterfly
        raise ValueError(f"exchange={self.exchange} is unknown")

    def _capacity(self, k: int, widest: int) -> int:
        """Latents a shard may offer per token; at least one, however many shards there are."""
        assert self.capacity_factor is not None
        return capacity_width(k, widest, self.mesh.latent.size, self.capacity_factor)

    def _count_lost(self, values_BW: Tensor, k: int, width: int) -> None:
        """What the limited capacity loses of this batch, which takes an exact exchange to know."""
        values_SBW = self.mesh.latent.gather(values_BW, "lost latents")
        exact_SB = selection.kept(values_SBW, k)
        found_SB = selection.kept(values_SBW[:, :, :width], k)
        self.counts.counted_latents += int(exact_SB.sum())
        self.counts.lost_latents += int((exact_SB - found_SB).clamp_min(0).sum())


def _padded(candidates: Active, widest: int) -> tuple[Tensor, Tensor]:
    """Values and ids as wide as the widest shard's; a NaN is the largest of all, as in topk."""
    values_BW = candidates.values_BK.detach().nan_to_num(
        nan=math.inf, posinf=math.inf, neginf=-math.inf
    )
    short = widest - values_BW.shape[1]
    values_BW = torch.nn.functional.pad(values_BW, (0, short), value=-math.inf)
    ids_BW = torch.nn.functional.pad(candidates.indices_BK, (0, short), value=selection.NO_ID)
    return values_BW, ids_BW


def _first(candidates: Active, kept_B: Tensor) -> Active:
    """The first `kept_B` candidates of each row, as wide as the longest (at least one, if any)."""
    width = min(max(1, int(kept_B.max())), candidates.values_BK.shape[1])
    values_BP, ids_BP = candidates.values_BK[:, :width], candidates.indices_BK[:, :width]
    inside_BP = torch.arange(width, device=kept_B.device) < kept_B[:, None]
    return Active(torch.where(inside_BP, values_BP, torch.zeros_like(values_BP)), ids_BP)


class _SumForward(torch.autograd.Function):
    """Partial sums of the shards become the whole, which every shard then uses alike."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, axis: Axis) -> Tensor:
        return axis.sum_(partial.clone(), "reconstruction")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        return grad_outputs[0], None


class _SumBackward(torch.autograd.Function):
    """What every shard holds meets latents that differ: each has a part of its gradient."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        return ctx.axis.sum_(grad_outputs[0].contiguous().clone(), "b_pre gradient"), None
