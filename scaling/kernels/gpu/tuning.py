"""Block sizes and cost constants, for the card and for Triton's interpreter."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

Matmul = str
"""`float32` or `bf16`: the operands of the encoder's products and of the gathers."""


def next_power_of_2(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Nothing here changes a result beyond rounding; all of it changes the time."""

    block_tokens: int
    block_latents: int
    block_d: int
    group_tokens: int
    """Token tiles that share a latent tile while it is in the cache."""
    matmul_warps: int
    matmul_stages: int
    descriptors: bool
    """Operand tiles come by the tensor memory accelerator (Hopper)."""
    rows_per_program: int
    """Rows of candidates that one program of the selection works on."""
    warp_width: int
    """Candidates that one warp of the selection holds."""
    streaming_from: int
    """Fewer latents than this are multiplied densely and selected afterwards."""
    capacity_factor: int
    """Slots for candidates, in units of k; a row that needs more is redone."""
    seed_divisor: int
    """The first threshold comes from this part of the latents."""
    growth: int
    """Latents passed before the threshold is renewed, in units of those before them."""
    tile_bytes: int
    """Largest temporary tensor of any operation."""
    gather_values: int
    """Values of decoder rows that one warp of the token pass holds at a time."""
    token_columns: int
    """Columns of decoder rows it takes at a time, at most."""
    pair_values: int
    """Values of token rows that one program of the latent pass holds at a time."""
    segment: int
    """Pairs of one latent that one program sums; a latent with more is cut."""
    dense_below: int
    """Dense products pay when N <= dense_below * K: the ratio of time between gathering one row
    and a matrix product with one row."""


BF16 = Tuning(
    block_tokens=128,
    block_latents=256,
    block_d=64,
    group_tokens=16,
    matmul_warps=8,
    matmul_stages=3,
    descriptors=True,
    rows_per_program=1,
    warp_width=1024,
    streaming_from=8192,
    capacity_factor=16,
    seed_divisor=64,
    growth=3,
    tile_bytes=2**29,
    gather_values=4096,
    pair_values=8192,
    token_columns=128,
    segment=512,
    dense_below=128,
)

FLOAT32 = Tuning(
    **{
        **BF16.__dict__,
        "block_tokens": 64,
        "block_latents": 128,
        "block_d": 32,
        "descriptors": False,
        "dense_below": 32,
    }
)
"""Products on the ordinary cores: for tests and comparisons."""

INTERPRETED = Tuning(
    **{
        **BF16.__dict__,
        "block_tokens": 16,
        "block_latents": 32,
        "block_d": 32,
        "group_tokens": 2,
        "descriptors": False,
        "rows_per_program": 16,
        "streaming_from": 64,
        "segment": 16,
        "dense_below": 4,
    }
)
"""The interpreter pays for each operation, not for its width: few, wide programs."""


def default_tuning(matmul: Matmul) -> Tuning:
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") == "1":
        return INTERPRETED
    return BF16 if matmul == "bf16" else FLOAT32
