"""No package but a floor: the encoder's forward matmul alone, in place of a step.

Called: `F.linear` in float32, the same in bfloat16 (weights kept in bfloat16, the batch converted
each time), and oneDNN's linear, which torch has but does not choose for float32. Each whole or in
tiles of 1024 tokens by 1024 latents, whose output stays in the cache; what is faster when the
contender is built is what runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.contender import Contender, Weights
from benchmarks.peers.shapes import Shape

TILE = 1024
_TRIALS = 3

Linear = Callable[[Tensor, Tensor, Tensor], Tensor]


def _onednn(x_BD: Tensor, w_ND: Tensor, b_N: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_BD, w_ND, b_N, "none", [], "")


class Encoder:
    def __init__(self, linear: Linear, w_enc_ND: Tensor, b_enc_N: Tensor) -> None:
        self.linear = linear
        self.w_enc_ND = w_enc_ND
        self.b_enc_N = b_enc_N
        self.tiled = False

    def choose(self, batch_BD: Tensor) -> None:
        if max(len(batch_BD), len(self.w_enc_ND)) > TILE:
            times_s = {tiled: self._best_s(batch_BD, tiled) for tiled in (False, True)}
            self.tiled = times_s[True] < times_s[False]

    def _best_s(self, batch_BD: Tensor, tiled: bool) -> float:
        self.tiled = tiled
        times_s = []
        for _ in range(_TRIALS):
            started_s = time.perf_counter()
            self.step(batch_BD)
            times_s.append(time.perf_counter() - started_s)
        return min(times_s)

    @torch.no_grad()
    def step(self, batch_BD: Tensor) -> None:
        x_BD = batch_BD.to(self.w_enc_ND.dtype)
        if not self.tiled:
            self.linear(x_BD, self.w_enc_ND, self.b_enc_N)
            return
        rows = zip(self.w_enc_ND.split(TILE), self.b_enc_N.split(TILE), strict=True)
        for w_MD, b_M in rows:
            for tile_BD in x_BD.split(TILE):
                self.linear(tile_BD, w_MD, b_M)

    def score(self, batch_BD: Tensor) -> None:
        return None


def _build(
    _shape: Shape,
    weights: Weights,
    batches: list[Tensor],
    *,
    linear: Linear = F.linear,
    dtype: torch.dtype = torch.float32,
) -> Contender:
    encoder = Encoder(linear, weights["w_enc"].to(dtype), weights["b_enc"].to(dtype))
    encoder.choose(batches[0])
    return encoder


BUILDERS = {
    "encoder_fp32": _build,
    "encoder_onednn": partial(_build, linear=_onednn),
    "encoder_bf16": partial(_build, dtype=torch.bfloat16),
}
