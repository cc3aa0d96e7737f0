"""Which latents are dead: silent for a window of tokens, counted over all replicas."""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.autoencoder.code import Code, fired


class DeadLatents:
    """Tokens since each latent held here last fired (was non-zero after the ReLU)."""

    def __init__(self, n_latents: int, dead_after_tokens: int, device: torch.device) -> None:
        self.dead_after_tokens = dead_after_tokens
        self.tokens_since_fired_N = torch.zeros(n_latents, dtype=torch.int64, device=device)

    def fired(self, code: Code) -> Tensor:
        """Which latents fired in this part of a batch, [N] uint8: 1 or 0."""
        return fired(code, len(self.tokens_since_fired_N))

    def update(self, fired_N: Tensor, batch_tokens: int) -> None:
        """Count one batch: of `batch_tokens` over all replicas, in which `fired_N` fired."""
        self.tokens_since_fired_N += batch_tokens
        self.tokens_since_fired_N *= 1 - fired_N.long()

    def ids(self) -> Tensor:
        """Ids of the dead latents, ascending, [A] int64."""
        return (self.tokens_since_fired_N >= self.dead_after_tokens).nonzero().flatten()
