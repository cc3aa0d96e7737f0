"""An autoencoder read from a file, ready for activations as a model makes them.

Normalization in and out is part of it. Inference only: nothing has a gradient, nothing is sharded.

Shape suffixes: B tokens, D d_model, N latents, K active.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from scaling.autoencoder.code import Code, Dense
from scaling.interchange.normalization import Scale, normalized, restored
from scaling.interchange.portable import Portable
from scaling.kernels import Active, load_kernels


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a loaded autoencoder."""

    source: str
    """Where it was read: a path, or an id on the hub."""
    format: str
    architecture: str
    """As whoever trained it calls it."""
    kind: str
    """How it chooses active latents: scaling/interchange/portable.py."""
    n_latents: int
    d_model: int
    k: int | None
    """Active latents per token; None where sparsity is an outcome."""
    normalization: str
    """Of activations, before the encoder: scaling/interchange/normalization.py."""
    more: dict[str, Any]
    """Whatever else the file says: run, subject model, layer, ..."""

    @classmethod
    def of(cls, portable: Portable, *, source: str, format_name: str) -> Facts:
        return cls(
            source=source,
            format=format_name,
            architecture=portable.architecture,
            kind=portable.kind,
            n_latents=portable.n_latents,
            d_model=portable.d_model,
            k=portable.k,
            normalization=portable.normalization,
            more=portable.facts,
        )


class Encoded(NamedTuple):
    """The code of some activations, with what their reconstruction needs."""

    code: Code
    scale: Scale | None
    """Per token, what undoes the normalization; None where there is none."""


class LoadedAutoencoder(nn.Module):
    """encode, decode and reconstruct on raw activations, float32 unless it is cast."""

    w_enc: Tensor
    w_dec: Tensor
    b_enc: Tensor
    b_pre: Tensor
    threshold: Tensor
    """Of jumprelu alone; the next two, of gated."""
    r_mag: Tensor
    b_mag: Tensor

    def __init__(self, portable: Portable, facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self._encode = _ENCODERS[portable.kind]
        self._kernels = load_kernels("torch")
        for name, tensor in portable.weights.items():
            self.register_buffer(name, tensor)

    @torch.no_grad()
    def encode(self, x_BD: Tensor) -> Encoded:
        """Activations [B, D], any float dtype, to their code: `Active` (values and ids, [B, k]) of
        kind topk, `Dense` (values, [B, N]) of the others."""
        if x_BD.dim() != 2 or x_BD.shape[1] != self.facts.d_model:
            raise ValueError(
                f"activations must be [tokens, {self.facts.d_model}], not {list(x_BD.shape)}"
            )
        x_BD, scale = normalized(x_BD.to(self.w_enc.dtype), self.facts.normalization)
        return Encoded(self._encode(self, x_BD), scale)

    @torch.no_grad()
    def decode(self, encoded: Encoded) -> Tensor:
        """The reconstruction of the activations that `encode` was given, [B, D]."""
        code, scale = encoded
        if isinstance(code, Dense):
            recon_BD = code.values_BN @ self.w_dec
        else:
            recon_BD = self._kernels.decode(code, self.w_dec)
        return restored(recon_BD + self.b_pre, scale)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Activations [..., D] to their reconstruction, of the same shape."""
        return self.decode(self.encode(x.reshape(-1, x.shape[-1]))).reshape(x.shape)

    def latents(self, x: Tensor) -> Tensor:
        """Activations [..., D] to a value for each latent, [..., N]; 0 = inactive."""
        code, _ = self.encode(x.reshape(-1, x.shape[-1]))
        values_BN = code.values_BN if isinstance(code, Dense) else self._spread(code)
        return values_BN.reshape(*x.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        """`reconstruct`."""
        return self.reconstruct(x)

    def _spread(self, code: Active) -> Tensor:
        zeros_BN = code.values_BK.new_zeros(len(code.values_BK), self.facts.n_latents)
        return zeros_BN.scatter_(1, code.indices_BK, code.values_BK)

    def pre_acts(self, x_BD: Tensor) -> Tensor:
        """w_enc (x - b_pre) + b_enc of NORMALIZED activations, [B, N]."""
        return linear(x_BD - self.b_pre, self.w_enc, self.b_enc)

    def extra_repr(self) -> str:
        facts = self.facts
        return (
            f"{facts.architecture}, n_latents={facts.n_latents}, d_model={facts.d_model}, "
            f"k={facts.k}, normalization={facts.normalization}, source={facts.source}"
        )


def _topk(model: LoadedAutoencoder, x_BD: Tensor) -> Active:
    assert model.facts.k is not None
    active = model._kernels.encode_topk(
        x_BD, model.w_enc, model.b_enc, model.facts.k, b_pre_D=model.b_pre
    )
    return Active(active.values_BK.relu(), active.indices_BK)


def _relu(model: LoadedAutoencoder, x_BD: Tensor) -> Dense:
    return Dense(model.pre_acts(x_BD).relu())


def _jumprelu(model: LoadedAutoencoder, x_BD: Tensor) -> Dense:
    pre_BN = model.pre_acts(x_BD)
    return Dense(pre_BN * (pre_BN > model.threshold.clamp_min(0.0)))


def _gated(model: LoadedAutoencoder, x_BD: Tensor) -> Dense:
    centered_BN = linear(x_BD - model.b_pre, model.w_enc)
    magnitude_BN = (centered_BN * model.r_mag.exp() + model.b_mag).relu()
    return Dense(magnitude_BN * (centered_BN + model.b_enc > 0))


_ENCODERS: dict[str, Callable[[LoadedAutoencoder, Tensor], Code]] = {
    "topk": _topk,
    "relu": _relu,
    "jumprelu": _jumprelu,
    "gated": _gated,
}
