"""Streaming TopK: the pre-activations exist one cached tile at a time.

Three ways to compute a tile, the same selection from each:

- float32, onednn: float32 through torch's default library (MKL on Intel) or through oneDNN;
- certified: bf16 operands on the matrix units, then float32 for whoever could be among the k
  largest. The error of a bf16 score is bounded by what rounding took from each operand
  (Cauchy-Schwarz): |x.w - x'.w'| <= |x - x'| |w| + |x'| |w - w'|. A latent whose upper bound lies
  below k lower bounds is out; all others are computed again in float32. The result is that of
  float32, whatever the data; only the time depends on them;
- bf16: the k largest bf16 scores, their values in float32. Latents closer to the k-th value than
  bf16 resolves may be swapped.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scaling.kernels.cpu import passes
from scaling.kernels.cpu.candidates import CandidateBuffers, Candidates, Slack
from scaling.kernels.interface import Active

MATMULS = ("float32", "onednn", "certified", "bf16")
TOKENS_PER_THREAD = 1024
"""Matmul libraries give a thread of its own to no less than this."""
LATENT_TILE = 1024
"""A tile of scores takes 2 to 4 MB a thread: it stays in the cache from matmul to filter."""
LANES = 16
"""Scores that the filter appends at a time."""
BF16_UNIT = 2.0**-8
"""Largest relative error of rounding to bf16 (8 significant bits)."""
LEAST_NORM = 1e-12
"""Below it squares underflow, and with them the bounds."""
LARGEST_NORM = 1e15
"""Above it products could overflow in bf16 scores."""


class Shadow(NamedTuple):
    """What is kept of the encoder beside its float32 rows."""

    rows_ND: Tensor
    """bfloat16."""
    norm_N: Tensor
    error_N: Tensor
    """Norm of what rounding took from each row."""


def make_shadow(w_enc_ND: Tensor) -> Shadow:
    n_latents = len(w_enc_ND)
    made = Shadow(
        torch.empty(w_enc_ND.shape, dtype=torch.bfloat16),
        torch.empty(n_latents),
        torch.empty(n_latents),
    )
    passes.shadow(w_enc_ND, *made)
    return made


class Selector:
    """Selects with one of `MATMULS`; keeps its buffers from call to call."""

    def __init__(self, matmul: str) -> None:
        if matmul not in MATMULS:
            raise ValueError(f"matmul={matmul} is not one of {', '.join(MATMULS)}")
        self.matmul = matmul
        self.redone_tokens = 0
        """Tokens with more candidates than fit, computed again in float32."""
        self.rescored = 0
        """Scores computed again in float32."""
        self._tiles: dict[torch.dtype, Tensor] = {}
        self._candidates = CandidateBuffers()

    @property
    def needs_shadow(self) -> bool:
        return self.matmul in ("certified", "bf16")

    def topk(
        self,
        centered_BD: Tensor,
        w_enc_ND: Tensor,
        b_enc_N: Tensor,
        k: int,
        shadow: Shadow | None = None,
    ) -> Active:
        """The k largest pre-activations; see `Kernels.encode_topk` for order and ties.

        Raises ValueError unless 1 <= k <= N.
        """
        if not 1 <= k <= len(w_enc_ND):
            raise ValueError(f"k={k} must lie in 1..{len(w_enc_ND)}, the number of latents")
        found = Active(
            torch.empty(len(centered_BD), k), torch.empty(len(centered_BD), k, dtype=torch.int64)
        )
        if not self.needs_shadow or not len(centered_BD):
            self._exact(centered_BD, w_enc_ND, b_enc_N, found)
            return found
        self._through_bf16(centered_BD, w_enc_ND, b_enc_N, found, shadow or make_shadow(w_enc_ND))
        return found

    def _exact(self, centered_BD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, found: Active) -> None:
        k = found.values_BK.shape[1]
        for tokens in _token_tiles(len(centered_BD)):
            x_TD = centered_BD[tokens]
            capacity = min(2 * k + 64, len(w_enc_ND) + LANES)
            candidates = self._candidates.fresh(len(x_TD), k, capacity)
            for latents in _latent_tiles(len(w_enc_ND)):
                tile_TM = self._product(x_TD, w_enc_ND[latents])
                candidates.filter_tile(tile_TM, b_enc_N, latents.start, None)
            candidates.finish_exact(found.values_BK[tokens], found.indices_BK[tokens])

    def _through_bf16(
        self, centered_BD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, found: Active, shadow: Shadow
    ) -> None:
        k = found.values_BK.shape[1]
        tokens_shadow = make_shadow(centered_BD)
        slack = self._slack(tokens_shadow, shadow, centered_BD.shape[1])
        if slack is None:  # not finite, or beyond the bounds' arithmetic
            self._exact(centered_BD, w_enc_ND, b_enc_N, found)
            return
        for tokens in _token_tiles(len(centered_BD)):
            x_TD = tokens_shadow.rows_ND[tokens]
            here = Slack(slack.token_B[tokens], slack.latent_N, slack.relative)
            capacity = min(8 * k + 256, len(w_enc_ND) + LANES)
            candidates = self._candidates.fresh(len(x_TD), k, capacity)
            for latents in _latent_tiles(len(w_enc_ND)):
                tile_TM = self._product(x_TD, shadow.rows_ND[latents])
                candidates.filter_tile(tile_TM, b_enc_N, latents.start, here)
            out = Active(found.values_BK[tokens], found.indices_BK[tokens])
            self.rescored += candidates.finish_rescored(
                centered_BD[tokens], w_enc_ND, b_enc_N, here, *out
            )
            self._redo_overflowed(candidates, centered_BD[tokens], w_enc_ND, b_enc_N, out)

    def _slack(self, tokens: Shadow, latents: Shadow, d_model: int) -> Slack | None:
        """Bounds on the error of bf16 scores; zero where selection by bf16 scores is asked for."""
        largest = torch.stack([tokens.norm_N.max(), latents.norm_N.max()])
        if not bool((largest < LARGEST_NORM).all()):
            return None
        if self.matmul == "bf16":
            return Slack(torch.zeros_like(tokens.norm_N), torch.zeros_like(latents.norm_N), 0.0)
        lost = float((tokens.error_N / tokens.norm_N.clamp_min(LEAST_NORM)).max())
        # Both sums are accumulated in float32, each in an order of its own; some matrix units
        # round every addition to odd, which has twice the error of rounding to nearest.
        accumulated = 4 * d_model * 2.0**-24
        latent_N = (lost + accumulated) * latents.norm_N + (1 + BF16_UNIT) * latents.error_N
        return Slack(
            1.001 * tokens.norm_N.clamp_min(LEAST_NORM),
            latent_N.clamp_min(LEAST_NORM),
            1.01 * BF16_UNIT,
        )

    def _redo_overflowed(
        self, candidates: Candidates, x_TD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, out: Active
    ) -> None:
        overflowed = (candidates.counts_B < 0).nonzero().flatten()
        if not len(overflowed):
            return
        self.redone_tokens += len(overflowed)
        k = out.values_BK.shape[1]
        again = Active(
            torch.empty(len(overflowed), k), torch.empty(len(overflowed), k, dtype=torch.int64)
        )
        self._exact(x_TD[overflowed], w_enc_ND, b_enc_N, again)  # ends all use of `candidates`
        out.values_BK[overflowed], out.indices_BK[overflowed] = again

    def _product(self, x_TD: Tensor, w_MD: Tensor) -> Tensor:
        if self.matmul == "onednn" and x_TD.dtype == torch.float32:
            return torch.ops.mkldnn._linear_pointwise(x_TD, w_MD, None, "none", [], "")
        n_values = len(x_TD) * len(w_MD)
        tile = self._tiles.get(x_TD.dtype)
        if tile is None or len(tile) < n_values:
            tile = self._tiles[x_TD.dtype] = torch.empty(n_values, dtype=x_TD.dtype)
        return torch.mm(x_TD, w_MD.T, out=tile[:n_values].view(len(x_TD), len(w_MD)))


def _token_tiles(n_tokens: int) -> list[slice]:
    return _ranges(n_tokens, TOKENS_PER_THREAD * torch.get_num_threads())


def _latent_tiles(n_latents: int) -> list[slice]:
    """Equal tiles: a last one of a few columns would be summed in another order than the rest."""
    n_tiles = -(-n_latents // LATENT_TILE)
    return _ranges(n_latents, -(-n_latents // (n_tiles * LANES)) * LANES)


def _ranges(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
