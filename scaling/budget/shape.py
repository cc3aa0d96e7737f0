"""All that the cost of a run depends on, in one value."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.budget.counts import n_params
from scaling.budget.exchange import candidate_width, capacity_width

VALUE_BYTES = {"float32": 4, "float64": 8, "bf16": 4}
"""Of weights, optimizer state and what is exchanged, by numerics.precision: bf16 is the precision
of the operands of products alone."""
LOW_PRECISION = ("bf16",)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One run on a mesh. Numbers are of the whole run unless they say `local`: of one rank."""

    n_latents: int
    d_model: int
    k: int
    batch_tokens: int
    k_aux: int = 0
    """0 = AuxK is off."""
    dense: bool = False
    """Every latent has a value, and k is not counted: sparsity is an outcome."""
    dead_share: float = 0.0
    """Of the latents, expected dead at a time: what AuxK works on."""
    dp: int = 1
    latent: int = 1
    engine: str = "fused"
    zero_stage: int = 0
    exchange: str = "gather"
    capacity_factor: float | None = None
    precision: str = "float32"
    ema: bool = True
    clip: bool = False
    device: str = "cpu"
    threads: int = 1

    @property
    def world_size(self) -> int:
        return self.dp * self.latent

    @property
    def n_local(self) -> int:
        return self.n_latents // self.latent

    @property
    def local_tokens(self) -> int:
        """A replica's part of the batch; all its shards see the same."""
        return self.batch_tokens // self.dp

    @property
    def local_params(self) -> int:
        return n_params(self.n_local, self.d_model)

    @property
    def value_bytes(self) -> int:
        return VALUE_BYTES[self.precision]

    @property
    def operand_bytes(self) -> int:
        """Of the operands of products and gathers on a GPU."""
        return 2 if self.precision in LOW_PRECISION else self.value_bytes

    @property
    def local_k(self) -> int:
        """Slots for active latents that a shard keeps per token."""
        return min(self.k, self.n_local)

    @property
    def pairs(self) -> float:
        """Active (token, latent) pairs of one shard, where they fall evenly."""
        return self.local_tokens * self.k / self.latent

    @property
    def local_dead(self) -> int:
        """Dead latents of one shard, where AuxK works on them."""
        return round(self.dead_share * self.n_local) if self.k_aux else 0

    @property
    def partitions(self) -> int:
        """Replicas among which ZeRO divides the optimizer's state."""
        return self.dp if self.engine == "deepspeed" and self.zero_stage else 1

    def offered(self, k: int, n_local: int) -> int:
        """Values that each shard offers per token to settle the k largest of all shards."""
        if self.capacity_factor is not None:
            return capacity_width(k, n_local, self.latent, self.capacity_factor)
        if self.exchange == "candidates":
            return candidate_width(k, n_local, self.latent)
        return min(k, n_local)
