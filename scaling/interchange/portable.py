"""The form that every format is read into and written from.

Four ways to choose the active latents cover what is trained here and what the formats hold:

    pre = w_enc (x - b_pre) + b_enc        xhat = w_dec^T z + b_pre

    topk       z = relu(pre) of the k largest pre, else 0
    relu       z = relu(pre)
    jumprelu   z = pre where pre > max(threshold, 0), else 0
    gated      z = relu(exp(r_mag) * w_enc (x - b_pre) + b_mag) where pre > 0, else 0

x is what the normalization made of an activation. All tensors are float32 on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

COMMON = ("w_enc", "w_dec", "b_enc", "b_pre")
KINDS: dict[str, tuple[str, ...]] = {
    "topk": (),
    "relu": (),
    "jumprelu": ("threshold",),
    "gated": ("r_mag", "b_mag"),
}
"""Of each kind the tensors [N] besides `COMMON`."""


@dataclass(frozen=True, kw_only=True)
class Portable:
    """An autoencoder without a program: numbers, and the words that say what to do with them."""

    kind: str
    """One of `KINDS`."""
    weights: dict[str, Tensor]
    """w_enc, w_dec [N, D], b_enc [N], b_pre [D], and the kind's own [N]."""
    k: int | None
    """Active latents per token, of kind topk; None elsewhere."""
    normalization: str
    """One of `normalization.KINDS`."""
    architecture: str
    """As whoever trained it calls it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever else is known: JSON."""

    @property
    def n_latents(self) -> int:
        return self.weights["w_enc"].shape[0]

    @property
    def d_model(self) -> int:
        return self.weights["w_enc"].shape[1]

    def with_weights(self, changed: dict[str, Tensor], **others: Any) -> Portable:
        """The same with some tensors changed, and other fields where they are named."""
        return replace(self, weights={**self.weights, **changed}, **others)
