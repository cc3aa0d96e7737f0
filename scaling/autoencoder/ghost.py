"""Ghost gradients: dead latents learn to model the residual, as if exp were their activation.

After Jermyn and Templeton (2024), "Ghost Grads: An improvement on resampling". For the dead latents
alone, with e = x - xhat held constant:

    g     = W_dec exp(W_enc (x - b_pre) + b_enc)
    ghat  = g |e| / (2 |g|)              by token, the factor held constant
    L_g   = mean (e - ghat)^2
    L     = L_mse + L_g (L_mse / L_g)    the ratio held constant: it counts as much as the mse

Shape suffixes: B tokens, D d_model, N latents held here, A dead latents.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scaling.autoencoder.losses import reconstruction_loss
from scaling.autoencoder.shard import LatentShard


class Ghost(NamedTuple):
    loss: Tensor
    """Normalized mean (e - ghat)^2, 0-d, without gradient."""
    scaled: Tensor
    """The term of the total: as large as the mse of the residual; 0 where that is undefined."""


def ghost_loss(
    target_BD: Tensor,
    pre_BA: Tensor,
    w_dec_AD: Tensor,
    mean_predictor_mse: float,
    shard: LatentShard,
) -> Ghost:
    """The ghost term for a (detached) residual and the dead latents' pre-activations. Collective.

    A shard without dead latents takes part with A = 0.
    """
    recon_BD = _scaled(_reconstruction(pre_BA, w_dec_AD, target_BD, shard), target_BD)
    loss = reconstruction_loss(target_BD - recon_BD, mean_predictor_mse)
    mse = reconstruction_loss(target_BD, mean_predictor_mse)
    both = shard.mean_over_replicas(torch.stack([mse, loss.detach()]))
    ratio = torch.where(both[1] > 0, both[0] / both[1], torch.zeros_like(mse))
    return Ghost(loss.detach(), ratio * loss)


def _reconstruction(
    pre_BA: Tensor, w_dec_AD: Tensor, target_BD: Tensor, shard: LatentShard
) -> Tensor:
    """g times a positive number of each token's own, [B, D].

    That number, exp of minus the largest pre-activation, keeps exp from overflowing; g is scaled
    by token afterwards, so that it changes neither ghat nor its gradient.
    """
    lowest_B1 = target_BD.new_full((len(target_BD), 1), -torch.inf)
    largest_B = torch.cat([pre_BA.detach(), lowest_B1], dim=1).amax(dim=1)
    largest_B = shard.largest(largest_B)
    if not len(w_dec_AD):
        return shard.sum_over_shards(torch.zeros_like(target_BD))
    return shard.sum_over_shards(torch.exp(pre_BA - largest_B[:, None]) @ w_dec_AD)


def _scaled(recon_BD: Tensor, target_BD: Tensor) -> Tensor:
    """At half the target's norm, by token."""
    norm_B = torch.linalg.vector_norm(recon_BD.detach(), dim=1)
    half_B = torch.linalg.vector_norm(target_BD, dim=1) / 2
    factor_B = torch.where(norm_B == 0, torch.zeros_like(norm_B), half_B / norm_B)
    return recon_BD * factor_B[:, None]


def rows_of(weight_ND: Tensor, ids: Tensor) -> Tensor:
    """weight[ids], whose gradient touches those rows alone instead of filling an [N, D] tensor."""
    return torch.nn.functional.embedding(ids, weight_ND, sparse=True)
