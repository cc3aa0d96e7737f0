"""What any run of a shape has: parameters, FLOPs under named conventions, steps."""

from __future__ import annotations

GIB = 2**30

INIT_SAMPLE_TOKENS = 32_768
"""Training vectors whose median (or mean) b_pre starts from."""


def n_params(n_latents: int, d_model: int) -> int:
    """w_enc, w_dec, b_enc and b_pre."""
    return 2 * n_latents * d_model + n_latents + d_model


MORE_PRODUCTS = {"gated": 2}
"""Products between a code and decoder rows, by architecture, beyond those of every autoencoder.
gated: its gate's values are decoded too, and the gradient comes back to them, not to the rows."""
MORE_DENSE_PRODUCTS = {**MORE_PRODUCTS, "multi_topk": 3}
"""The same with every product dense. multi_topk: its wider code is decoded too, and gradients come
back to it and to the rows; of active latents alone, `decoded_pairs` counts these."""


def more_products(architecture: str, *, dense: bool = False) -> int:
    """As `MORE_PRODUCTS` says, or `MORE_DENSE_PRODUCTS`; 0 for an architecture that needs none."""
    return (MORE_DENSE_PRODUCTS if dense else MORE_PRODUCTS).get(architecture, 0)


def flops_per_token_dense(n_latents: int, d_model: int, *, more: int = 0) -> int:
    """Training FLOPs with every product dense: 12 n d, six matmuls of 2 n d, and `more` of them.

    Encoder and decoder forward; gradients of the decoder, the code, the encoder and the pre-bias.
    """
    return (12 + 2 * more) * n_latents * d_model


def flops_per_token_sparse(n_latents: int, d_model: int, k: float, *, more: int = 0) -> int:
    """Training FLOPs when only the encoder forward is dense: 2 n d + 8 k d.

    The sparse passes are the decoder forward and the gradients of code, decoder and encoder, 2 k d
    each, and so is each of `more`. Not counted in either convention: the pre-bias (2 n d a batch),
    biases, the optimizer, and AuxK, whose cost depends on how many latents are dead.
    """
    return round(2 * n_latents * d_model + (8 + 2 * more) * k * d_model)


def decoded_pairs(k: int, wide_k: int | None = None) -> float:
    """What stands for k above where a token is also reconstructed from `wide_k` latents.

    The decoder forward and the gradients of code and decoder are of k and of wide_k pairs, 2 d
    FLOPs each; the encoder's gradient is of the wide_k, which hold the k.
    """
    return k if wide_k is None else wide_k + 0.75 * k


def n_steps(tokens: int, batch_tokens: int) -> int:
    """Whole batches in a token budget; the remainder is not trained on."""
    return tokens // batch_tokens


def power_of_two_near(value: float) -> int:
    """The power of two nearest on a log scale, at least 1. k_aux is the one nearest d_model / 2."""
    exponent = 0
    while 2 ** (exponent + 0.5) <= value:
        exponent += 1
    return 2**exponent
