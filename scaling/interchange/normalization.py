"""What is done to an activation before the autoencoder, and undone after it.

    none           x
    unit_norm      (x - mean) / |x - mean|                    back: times |x - mean|, plus mean
    std            (x - mean) / (std + 1e-5), std unbiased    back: times std, plus mean
    constant_norm  x * sqrt(D) / |x|                          back: times |x| / sqrt(D)

mean, std and norms are over D, of each token. `std` is undone without the 1e-5, as in the released
code of Gao et al. 2024 and in sae-lens, so that their weights give their reconstructions.
`constant_norm` is sae-lens's constant_norm_rescale; nothing here is trained with it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from scaling.activations.normalize import NORM_FLOOR, normalize

KINDS = ("none", "unit_norm", "std", "constant_norm")


class Scale(NamedTuple):
    """What undoes the normalization of each token."""

    factor_B1: Tensor
    mean_B1: Tensor


def normalized(x_BD: Tensor, kind: str) -> tuple[Tensor, Scale | None]:
    """[B, D] as the autoencoder wants it, and what brings a reconstruction back."""
    if kind == "none":
        return x_BD, None
    if kind == "constant_norm":
        norm_B1 = x_BD.norm(dim=1, keepdim=True).clamp_min(NORM_FLOOR)
        factor_B1 = norm_B1 / math.sqrt(x_BD.shape[1])
        return x_BD / factor_B1, Scale(factor_B1, factor_B1.new_zeros(()))
    mean_B1 = x_BD.mean(dim=1, keepdim=True)
    if kind == "std":
        factor_B1 = x_BD.std(dim=1, keepdim=True)
    else:
        factor_B1 = (x_BD - mean_B1).norm(dim=1, keepdim=True)
    return normalize(x_BD, kind), Scale(factor_B1, mean_B1)


def restored(y_BD: Tensor, scale: Scale | None) -> Tensor:
    """A reconstruction of normalized activations as one of the activations themselves."""
    return y_BD if scale is None else y_BD * scale.factor_B1 + scale.mean_B1
