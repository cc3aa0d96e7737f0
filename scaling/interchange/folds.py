"""Changes of the weights that leave what an autoencoder computes as it is.

Every kind is homogeneous: with biases and thresholds times c, inputs times c give latents and
reconstructions times c. That, and two folds into the encoder, is all that formats differ by.
"""

from __future__ import annotations

import math

from torch import Tensor

from scaling.interchange.portable import Portable

_SCALE_WITH_INPUT = ("b_enc", "b_pre", "b_mag", "threshold")


def for_std_inputs(portable: Portable) -> Portable:
    """From inputs of unit norm to inputs of unit (unbiased) std, which are sqrt(D - 1) as long.

    Both matrices stay as they are, so unit decoder rows stay so; latents become sqrt(D - 1) times
    as large. Exact but for the 1e-5 that is added to the std of a token.
    """
    assert portable.normalization == "unit_norm"
    factor = math.sqrt(portable.d_model - 1)
    weights = portable.weights
    changed = {name: weights[name] * factor for name in _SCALE_WITH_INPUT if name in weights}
    return portable.with_weights(changed, normalization="std")


def with_input_bias(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of an encoder that is given x the weights of one that is given x - b_pre."""
    shift_N = weights["w_enc"] @ weights["b_pre"]
    changed = {"b_enc": weights["b_enc"] + shift_N}
    if "b_mag" in weights:
        changed["b_mag"] = weights["b_mag"] + weights["r_mag"].exp() * shift_N
    return {**weights, **changed}


def with_decoder_norms_in_latents(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of an encoder that multiplies `pre` by decoder norms, and whose decoder divides by them, the
    weights without either: decoder rows of unit norm."""
    norm_N = weights["w_dec"].norm(dim=1)
    changed = {
        "w_enc": weights["w_enc"] * norm_N[:, None],
        "b_enc": weights["b_enc"] * norm_N,
        "w_dec": weights["w_dec"] / norm_N[:, None],
    }
    return {**weights, **changed}
