"""Normalization per token, before the autoencoder and before any reconstruction error."""

from __future__ import annotations

from torch import Tensor

from scaling.errors import UserError

STD_EPS = 1e-5
"""As in the released reference code of Gao et al. 2024."""
NORM_FLOOR = 1e-12
"""Keeps a vector of equal components (which carries nothing) at 0 instead of NaN."""


def normalize(x_BD: Tensor, kind: str) -> Tensor:
    """float32 [B, D] to float32 [B, D]. Kinds:

    unit_norm: subtract the mean over D, scale to norm 1 (the paper's).
    std: subtract the mean over D, divide by (unbiased std + 1e-5) (the released code's).
    none: as it is.
    """
    if kind == "none":
        return x_BD
    centered = x_BD - x_BD.mean(dim=1, keepdim=True)
    match kind:
        case "unit_norm":
            return centered / centered.norm(dim=1, keepdim=True).clamp_min(NORM_FLOOR)
        case "std":
            return centered / (x_BD.std(dim=1, keepdim=True) + STD_EPS)
        case _:
            raise UserError(f"activations.normalization={kind!r}: use unit_norm, std or none.")
