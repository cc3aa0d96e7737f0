"""The fused engine's passes where the latents are sharded: the same sums, with exchanges between.

A shard's latents give a partial reconstruction; only the sum over shards makes the residual, which
every shard then uses alike.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scaling.autoencoder.shard import LatentShard
from scaling.kernels import Active
from scaling.kernels.autograd import Primitives
from scaling.kernels.fused import (
    AuxiliaryPass,
    FusedKernels,
    LatentState,
    RowGradients,
    TokenPass,
)


class ShardedKernels(FusedKernels, Primitives, Protocol):
    """Both the CPU's and the GPU's kernels are."""


def selected_over_shards(shard: LatentShard, found: Active, k: int, widest: int) -> Active:
    """Of the local candidates (local ids), those among the k largest of all latents."""
    global_ids = Active(found.values_BK, found.indices_BK + shard.first_latent)
    kept_BK = shard.select(global_ids, k, widest).values_BK
    return Active(kept_BK, found.indices_BK[:, : kept_BK.shape[1]].contiguous())


def token_pass_over_shards(
    kernels: ShardedKernels,
    shard: LatentShard,
    target_BD: Tensor,
    active: Active,
    w_dec_ND: Tensor,
    residual_scale: float,
) -> TokenPass:
    """See `FusedKernels.token_pass`; the residual is that of the whole autoencoder."""
    residual_BD = target_BD - shard.sum_over_shards(kernels.token_rows(active, w_dec_ND))
    slopes_BK = kernels.dot_products(residual_BD, w_dec_ND, active.indices_BK)
    open_BK = active.values_BK > 0
    grad_values_BK = torch.where(open_BK, residual_scale * slopes_BK, torch.zeros_like(slopes_BK))
    return TokenPass(residual_BD, grad_values_BK, residual_BD.square().sum())


class AuxiliaryTask(NamedTuple):
    """What dead latents are to reconstruct."""

    centered_BD: Tensor
    target_BD: Tensor
    dead: Tensor
    """Local ids, ascending."""
    most_dead: int
    """Of all shards, the one with most has so many."""
    k_aux: int
    residual_scale: float
    """As `FusedKernels.auxiliary_pass`'s."""


def auxiliary_pass_over_shards(
    kernels: ShardedKernels, shard: LatentShard, state: LatentState, task: AuxiliaryTask
) -> AuxiliaryPass:
    """See `FusedKernels.auxiliary_pass`."""
    centered_BD, target_BD, dead, most_dead, k_aux, residual_scale = task
    w_enc_AD, w_dec_AD = state.w_enc.weight[dead], state.w_dec.weight[dead]
    found = _candidates(kernels, centered_BD, w_enc_AD, state.b_enc.weight[dead], k_aux)
    global_ids = Active(found.values_BK, dead[found.indices_BK] + shard.first_latent)
    kept_BK = torch.relu(shard.select(global_ids, k_aux, min(k_aux, most_dead)).values_BK)
    active = Active(kept_BK, found.indices_BK[:, : kept_BK.shape[1]].contiguous())
    if not len(dead):
        error_BD = target_BD - shard.sum_over_shards(torch.zeros_like(target_BD))
        none = RowGradients(dead, w_enc_AD, w_dec_AD, state.b_enc.weight[dead])
        return AuxiliaryPass(error_BD.square().sum(), none)
    passed = token_pass_over_shards(kernels, shard, target_BD, active, w_dec_AD, residual_scale)
    through_encoder = Active(passed.grad_values_BK, active.indices_BK)
    gradients = RowGradients(
        dead,
        kernels.latent_rows(through_encoder, centered_BD, len(dead)),
        kernels.latent_rows(active, residual_scale * passed.residual_BD, len(dead)),
        kernels.latent_sums(through_encoder, len(dead)),
    )
    return AuxiliaryPass(passed.squared_error, gradients)


def _candidates(
    kernels: ShardedKernels, centered_BD: Tensor, w_enc_AD: Tensor, b_enc_A: Tensor, k_aux: int
) -> Active:
    """The k_aux largest pre-activations of these latents, or of as many as there are."""
    k = min(k_aux, len(b_enc_A))
    if not k:
        empty_BK = centered_BD.new_zeros(len(centered_BD), 0)
        return Active(empty_BK, empty_BK.long())
    return kernels.topk(centered_BD, w_enc_AD, b_enc_A, k)
