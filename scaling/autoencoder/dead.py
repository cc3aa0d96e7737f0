"""Which latents are dead: silent for a window of tokens, counted over all replicas."""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.kernels import Active


class DeadLatents:
    """Tokens since each latent held here last fired (was non-zero after the ReLU)."""

    def __init__(self, n_latents: int, dead_after_tokens: int, device: torch.device) -> None:
        self.dead_after_tokens = dead_after_tokens
        self.tokens_since_fired_N = torch.zeros(n_latents, dtype=torch.int64, device=device)

    def update(self, active: Active, batch_tokens: int) -> None:
        """Count one batch: `batch_tokens` is the global batch, whatever part of it is here."""
        self.tokens_since_fired_N += batch_tokens
        fired = active.indices_BK[active.values_BK > 0]
        self.tokens_since_fired_N[fired] = 0

    def ids(self) -> Tensor:
        """Ids of the dead latents, ascending, [A] int64."""
        return (self.tokens_since_fired_N >= self.dead_after_tokens).nonzero().flatten()
