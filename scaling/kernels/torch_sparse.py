"""Sparse operations in plain torch: only the encoder's forward matmul stays dense.

The pre-activations live in one tile of tokens at a time. Where K is not small against N, as for
the auxiliary loss over a handful of dead latents, two matmuls are cheaper than the gathers and are
used instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.kernels.autograd import SparseKernels
from scaling.kernels.interface import Active

TILE_BYTES = 32 * 2**20
"""Size of one tile of pre-activations: small enough to stay in the last-level cache."""
DENSE_BELOW = 10
"""Dense products pay when N <= DENSE_BELOW * K: a gather moves 10 to 12 times fewer multiply-adds
per second than a matmul (measured on AVX-512 cores at d_model 576)."""
DENSE_MAX_VALUES = 2**26
"""No dense code larger than this is ever made (256 MiB in float32)."""


class TorchKernels(SparseKernels):
    """See `scaling.kernels.autograd.Primitives`; any float dtype, any device."""

    def topk(self, centered_BD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, k: int) -> Active:
        tiles = [
            topk_lowest_id(F.linear(tile, w_enc_ND, b_enc_N), k)
            for tile in centered_BD.split(_tile_tokens(w_enc_ND))
        ]
        return Active(
            torch.cat([tile.values_BK for tile in tiles]),
            torch.cat([tile.indices_BK for tile in tiles]),
        )

    def token_rows(self, pairs: Active, w_ND: Tensor) -> Tensor:
        if dense_pays(pairs.indices_BK, w_ND.shape[0]):
            return dense_code(pairs, w_ND.shape[0]) @ w_ND
        return F.embedding_bag(
            pairs.indices_BK, w_ND, per_sample_weights=pairs.values_BK, mode="sum"
        )

    def latent_rows(self, pairs: Active, x_BD: Tensor, n_latents: int) -> Tensor:
        if dense_pays(pairs.indices_BK, n_latents):
            return dense_code(pairs, n_latents).T @ x_BD
        flat_ids, values = pairs.indices_BK.flatten(), pairs.values_BK.flatten()
        by_latent = torch.argsort(flat_ids, stable=True)
        ends_N = torch.bincount(flat_ids, minlength=n_latents).cumsum(0)
        starts_N = F.pad(ends_N, (1, 0))[:-1]
        tokens = by_latent // pairs.indices_BK.shape[1]
        return F.embedding_bag(
            tokens, x_BD, starts_N, per_sample_weights=values[by_latent], mode="sum"
        )

    def latent_sums(self, pairs: Active, n_latents: int) -> Tensor:
        sums_N = pairs.values_BK.new_zeros(n_latents)
        return sums_N.index_add_(0, pairs.indices_BK.flatten(), pairs.values_BK.flatten())

    def dot_products(self, grad_BD: Tensor, w_ND: Tensor, indices_BK: Tensor) -> Tensor:
        if dense_pays(indices_BK, w_ND.shape[0]):
            return (grad_BD @ w_ND.T).gather(1, indices_BK)
        # The gradient of a weighted bag of rows with respect to its weights is these products.
        with torch.enable_grad():
            weights_BK = torch.ones_like(indices_BK, dtype=grad_BD.dtype, requires_grad=True)
            bags_BD = F.embedding_bag(
                indices_BK, w_ND.detach(), per_sample_weights=weights_BK, mode="sum"
            )
        return torch.autograd.grad(bags_BD, weights_BK, grad_BD)[0]


def topk_lowest_id(pre_BN: Tensor, k: int) -> Active:
    """The k largest of each row, exactly k, ordered by value then id; the lowest id wins a tie.

    torch.topk breaks ties as it likes. One more candidate than asked for shows every row in
    which a tie could matter; those few rows are sorted stably instead.
    """
    values_BK, indices_BK = torch.topk(pre_BN, min(k + 1, pre_BN.shape[1]), dim=1)
    tied_B = (values_BK[:, 1:] == values_BK[:, :-1]).any(dim=1)
    values_BK, indices_BK = values_BK[:, :k].contiguous(), indices_BK[:, :k].contiguous()
    if bool(tied_B.any()):
        ordered = torch.sort(pre_BN[tied_B], dim=1, descending=True, stable=True)
        values_BK[tied_B], indices_BK[tied_B] = ordered.values[:, :k], ordered.indices[:, :k]
    return Active(values_BK, indices_BK)


def dense_pays(indices_BK: Tensor, n_latents: int) -> bool:
    """Whether matmuls over all N latents beat gathers of the K active ones."""
    n_tokens, k = indices_BK.shape
    return n_latents <= DENSE_BELOW * k and n_tokens * n_latents <= DENSE_MAX_VALUES


def dense_code(pairs: Active, n_latents: int) -> Tensor:
    """The code as a matrix, [B, N]."""
    zeros_BN = pairs.values_BK.new_zeros(pairs.values_BK.shape[0], n_latents)
    return zeros_BN.scatter_(1, pairs.indices_BK, pairs.values_BK)


def _tile_tokens(w_enc_ND: Tensor) -> int:
    return max(1, TILE_BYTES // (w_enc_ND.shape[0] * w_enc_ND.element_size()))
