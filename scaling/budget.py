"""Pure arithmetic: parameters, FLOPs under named conventions, steps, memory.

No torch, no config: what a run costs can be said without starting anything.
"""

from __future__ import annotations

from math import comb

GIB = 2**30


def n_params(n_latents: int, d_model: int) -> int:
    """w_enc, w_dec, b_enc and b_pre."""
    return 2 * n_latents * d_model + n_latents + d_model


def flops_per_token_dense(n_latents: int, d_model: int) -> int:
    """Training FLOPs with every product dense: 12 n d, six matmuls of 2 n d.

    Encoder and decoder forward; gradients of the decoder, the code, the encoder and the pre-bias.
    """
    return 12 * n_latents * d_model


def flops_per_token_sparse(n_latents: int, d_model: int, k: int) -> int:
    """Training FLOPs when only the encoder forward is dense: 2 n d + 8 k d.

    The sparse passes are the decoder forward and the gradients of code, decoder and encoder, 2 k d
    each. Not counted in either convention: the pre-bias (2 n d a batch), biases, the optimizer,
    and AuxK, whose cost depends on how many latents are dead.
    """
    return 2 * n_latents * d_model + 8 * k * d_model


def n_steps(tokens: int, batch_tokens: int) -> int:
    """Whole batches in a token budget; the remainder is not trained on."""
    return tokens // batch_tokens


def train_memory_bytes(
    n_latents: int,
    d_model: int,
    batch_tokens: int,
    *,
    k: int,
    threads: int,
    bytes_per_value: int,
    ema: bool,
) -> int:
    """Peak memory of one run on one process: state, gradients and the largest temporaries.

    Per parameter: weight, gradient, two Adam moments, the average if kept, and a second copy of
    weights, moments and average while a checkpoint is written. Memory-mapped activations are not
    counted: the system drops them when it needs the room (a measured peak includes them).
    """
    copies = 1 + 2 * (3 + ema)
    state = copies * n_params(n_latents, d_model) * bytes_per_value
    batch = 8 * batch_tokens * d_model * bytes_per_value
    start = 4 * INIT_SAMPLE_TOKENS * d_model * 4
    selection = _selection_bytes(n_latents, d_model, min(batch_tokens, 1024 * threads), k)
    return max(state + batch, start) + selection + PROCESS_BYTES


def _selection_bytes(n_latents: int, d_model: int, tile_tokens: int, k: int) -> int:
    """A bf16 copy of the encoder, tiles of scores, and the candidates of a tile of tokens."""
    tiles = max(2 * PRE_ACTIVATION_TILE_BYTES, 6 * 1024 * tile_tokens)
    return 2 * n_latents * d_model + tiles + 8 * (8 * k + 256) * tile_tokens


INIT_SAMPLE_TOKENS = 32_768
"""Training vectors whose median (or mean) b_pre starts from."""


PRE_ACTIVATION_TILE_BYTES = 32 * 2**20
PROCESS_BYTES = 550 * 2**20
"""Interpreter, torch and its libraries, resident, and what the allocator keeps in hand."""


def power_of_two_near(value: float) -> int:
    """The power of two nearest on a log scale, at least 1. k_aux is the one nearest d_model / 2."""
    exponent = 0
    while 2 ** (exponent + 0.5) <= value:
        exponent += 1
    return 2**exponent


# ---------------------------------------------------------------- the exchange between shards

MAX_REDONE_SHARE = 0.01
"""Of the tokens whose candidates may turn out too few."""


def candidate_width(k: int, n_local: int, shards: int) -> int:
    """Latents each shard offers per token so that under 1% of the tokens need a second look.

    Where the k largest fall on the shards independently, a shard holds Binomial(k, 1 / shards) of
    them; a token is redone when the last latent that some shard offered is among the k largest.
    """
    widest = min(k, n_local)
    for width in range(1, widest):
        if shards * _binomial_tail(k, 1 / shards, width) < MAX_REDONE_SHARE:
            return width
    return widest


def exchange_bytes_per_token(
    exchange: str, k: int, n_local: int, shards: int, *, redone_share: float = MAX_REDONE_SHARE
) -> float:
    """Bytes a shard sends per token (float32 values) to settle which latents are the k largest.

    gather: a ring all-gather of min(k, n_local) values. candidates: of `candidate_width` values,
    and of all again for the tokens that are redone. butterfly: in each of log2(shards) rounds k
    values with their ids (int32).
    """
    widest = min(k, n_local)
    match exchange:
        case "gather":
            return 4 * (shards - 1) * widest
        case "candidates":
            width = candidate_width(k, n_local, shards)
            again = redone_share * widest if width < widest else 0
            return 4 * (shards - 1) * (width + again)
        case "butterfly":
            return 8.0 * sum(min(k, n_local * 2**step) for step in range(shards.bit_length() - 1))
    raise ValueError(f"exchange={exchange} is not one of {', '.join(EXCHANGES)}")


EXCHANGES = ("gather", "candidates", "butterfly")


def choose_exchange(k: int, n_local: int, shards: int) -> str:
    """The exact exchange with the fewest predicted bytes; the simplest of equals."""
    able = [name for name in EXCHANGES if name != "butterfly" or shards & (shards - 1) == 0]
    return min(able, key=lambda name: exchange_bytes_per_token(name, k, n_local, shards))


def _binomial_tail(n: int, p: float, least: int) -> float:
    """P(X >= least) for X ~ Binomial(n, p)."""
    below = sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(least))
    return max(0.0, 1 - below)
