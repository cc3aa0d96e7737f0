"""What every architecture is: two matrices with a row per latent, a pre-bias, and four methods.

    encode              x -> code: the k active latents of each token, or a value for each latent
    decode              code -> xhat
    encode_with_losses  x -> code, and the losses whose total is differentiated
    after_step          what changes outside the gradient once the optimizer has stepped

Weights are stored [n_latents, d_model], so that a latent is a row in each and a shard of the
latents is a range of rows. Everything speaks to the other shards through `LatentShard` alone.

Shape suffixes: B tokens, D d_model, N latents held here, A dead latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from scaling.autoencoder.code import Code, Dense
from scaling.autoencoder.shard import LatentShard, Unsharded


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything that defines a model and its loss, with all numbers settled."""

    d_model: int
    n_latents: int
    mean_predictor_mse: float
    """Mean over tokens and d of the squared distance to the calibration mean: the loss's unit."""
    b_enc: bool = True
    """Whether the latent bias is trained; False = it stays 0."""
    decoder_norm: bool = True
    """Whether decoder rows are brought back to unit norm after each step."""
    gradient_projection: bool = True
    """Whether the decoder's gradient loses its component along each row first."""
    ghost_grads: bool = False
    """Whether dead latents get a gradient through exp (`scaling.autoencoder.ghost`)."""

    def __post_init__(self) -> None:
        if not self.mean_predictor_mse > 0:
            raise ValueError(f"mean_predictor_mse={self.mean_predictor_mse} must be positive")
        if self.gradient_projection and not self.decoder_norm:
            raise ValueError("gradient_projection needs decoder_norm: rows keep their norm")


class Losses(NamedTuple):
    """Scalars; `total` is what the gradient is taken of."""

    total: Tensor
    normalized_mse: Tensor
    """Reconstruction loss over the calibration mean predictor's; not the held-out metric."""
    aux: Tensor
    """Loss of the dead latents before its weight or scale; 0 when none is dead."""
    n_dead: int
    """Dead latents, of all shards."""
    sparsity: Tensor | None = None
    """Sparsity penalty before its weight, of all shards; None where the code's width is fixed."""


class Autoencoder(nn.Module, ABC):
    """Weights and equations; no optimizer, no data, no knowledge of ranks."""

    MORE_PER_LATENT: ClassVar[dict[str, float]] = {}
    """Parameters [N] besides b_enc, with the value each starts from."""
    STATISTICS: ClassVar[dict[str, float]] = {}
    """0-d numbers that `after_step` keeps and no gradient changes, with their start."""

    def __init__(
        self, spec: Spec, weights: dict[str, Tensor], shard: LatentShard | None = None
    ) -> None:
        """`weights`: w_enc, w_dec [N, D], b_enc [N], b_pre [D], of one float dtype; what is absent
        of an architecture's own begins at its start."""
        super().__init__()
        self.spec = spec
        self.shard = shard or Unsharded()
        self.w_enc = nn.Parameter(weights["w_enc"])
        self.w_dec = nn.Parameter(weights["w_dec"])
        self.b_enc = nn.Parameter(weights["b_enc"], requires_grad=spec.b_enc)
        for name, start in self.MORE_PER_LATENT.items():
            values_N = weights.get(name, torch.full_like(weights["b_enc"], start))
            self.register_parameter(name, nn.Parameter(values_N))
        self.b_pre = nn.Parameter(weights["b_pre"])
        for name, start in self.STATISTICS.items():
            self.register_buffer(name, weights.get(name, torch.full_like(self.b_enc[0], start)))

    @abstractmethod
    def encode(self, x_BD: Tensor) -> Code:
        """The code of x, values after the activation function, ids local to this shard."""

    def decode(self, code: Code) -> Tensor:
        """The reconstruction xhat, [B, D]."""
        assert isinstance(code, Dense)
        return self.shard.sum_over_shards(code.values_BN @ self.w_dec) + self.b_pre

    @abstractmethod
    def encode_with_losses(self, x_BD: Tensor, dead: Tensor, step: int = 0) -> tuple[Code, Losses]:
        """Code and losses of a batch, given the (local) ids of the dead latents ([A], int64) and
        how many updates were made before."""

    def encode_at_start(self, x_BD: Tensor) -> Code:
        """The code of x before any step, on which the encoder's first scale is measured."""
        return self.encode(x_BD)

    @torch.no_grad()
    def after_step(self, code: Code) -> None:
        """Take in the code of the batch just trained on. Collective. Nothing, by default."""

    def homogeneous(self) -> Self:
        """This model without what does not scale with its input; such a threshold is 0 there."""
        return self

    def with_weights(self, weights: dict[str, Tensor]) -> Self:
        """The same model with other weights, which it shares."""
        return type(self)(self.spec, weights, self.shard)
