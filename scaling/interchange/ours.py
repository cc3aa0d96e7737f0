"""What each architecture trained here is in portable form: a function each, by its name.

Training adds losses; what is left at inference is one of four kinds (portable.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scaling.autoencoder.registry import ARCHITECTURES
from scaling.errors import UserError
from scaling.interchange.portable import COMMON, KINDS, Portable

Converted = tuple[str, dict[str, Tensor]]
"""Kind and weights."""


def _topk(weights: dict[str, Tensor]) -> Converted:
    return "topk", weights


def _relu(weights: dict[str, Tensor]) -> Converted:
    return "relu", weights


def _gated(weights: dict[str, Tensor]) -> Converted:
    return "gated", weights


def _jumprelu(weights: dict[str, Tensor]) -> Converted:
    return "jumprelu", {**weights, "threshold": weights["log_threshold"].exp()}


def _prolu(weights: dict[str, Tensor]) -> Converted:
    """m = w_enc (x - b_pre) stays where m > 0 and m + b_enc > 0: a threshold, and no bias."""
    b_enc_N = weights["b_enc"]
    changed = {"b_enc": torch.zeros_like(b_enc_N), "threshold": (-b_enc_N).clamp_min(0)}
    return "jumprelu", {**weights, **changed}


def _batch_topk(weights: dict[str, Tensor]) -> Converted:
    """At inference one threshold stands for the selection over a batch."""
    return "jumprelu", {**weights, "threshold": weights["threshold"].expand_as(weights["b_enc"])}


_CONVERT: dict[str, Callable[[dict[str, Tensor]], Converted]] = {
    "topk": _topk,
    "multi_topk": _topk,
    "matryoshka": _topk,
    "relu": _relu,
    "prolu": _prolu,
    "gated": _gated,
    "jumprelu": _jumprelu,
    "batch_topk": _batch_topk,
}

_TOPK = "topk of the pre-activations, then relu"
ACTIVATION: dict[str, str] = {
    "topk": _TOPK,
    "multi_topk": _TOPK,
    "matryoshka": _TOPK,
    "prolu": "w_enc (x - b_pre) where it and its sum with b_enc are above 0",
    "relu": "relu of the pre-activations",
    "gated": "relu(exp(r_mag) * w_enc (x - b_pre) + b_mag) where the pre-activation is above 0",
    "jumprelu": "the pre-activation where it is above exp(log_threshold)",
    "batch_topk": "the pre-activation where it is above threshold and 0",
}
"""In words, for config.json."""


def known() -> list[str]:
    """The architectures that go out and come in."""
    return [name for name in _CONVERT if name in ARCHITECTURES]


def tensor_names(architecture: str) -> tuple[str, ...]:
    """Of the tensors that make up the weights of such a run. Raises `UserError`."""
    if architecture not in known():
        raise UserError(
            f"architecture={architecture} cannot be exported by this version: "
            f"{', '.join(known())} can."
        )
    trained = ARCHITECTURES[architecture]
    return (*COMMON, *trained.MORE_PER_LATENT, *trained.STATISTICS)


def is_statistic(architecture: str, name: str) -> bool:
    """Whether it is a number that training keeps, of which there is no average, and no row."""
    return name in ARCHITECTURES[architecture].STATISTICS


def portable(
    architecture: str,
    weights: dict[str, Tensor],
    *,
    k: int | None,
    normalization: str,
    facts: dict[str, Any],
) -> Portable:
    """The portable form of weights by the names that they are trained under."""
    kind, converted = _CONVERT[architecture](weights)
    return Portable(
        kind=kind,
        weights={name: converted[name].contiguous() for name in (*COMMON, *KINDS[kind])},
        k=k if kind == "topk" else None,
        normalization=normalization,
        architecture=architecture,
        facts=facts,
    )
