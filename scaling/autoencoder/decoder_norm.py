"""Unit-norm decoder rows: a latent's direction and its strength are told apart."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ROWS = 1024
"""Rows done at a time, so that the temporary products stay in the cache."""


@torch.no_grad()
def remove_parallel_gradient_(grad_ND: Tensor, w_dec_ND: Tensor) -> None:
    """Take from each row's gradient, in place, the component along the (unit) row itself.

    That component would only change the norm, which renormalization undoes; left in, it would
    still feed Adam's moments.
    """
    for grad_MD, w_dec_MD in zip(
        grad_ND.split(BLOCK_ROWS), w_dec_ND.split(BLOCK_ROWS), strict=True
    ):
        along_M = torch.linalg.vecdot(grad_MD, w_dec_MD)
        grad_MD.addcmul_(along_M[:, None], w_dec_MD, value=-1)


@torch.no_grad()
def renormalize_rows_(w_dec_ND: Tensor) -> None:
    """Scale each latent's row to unit norm, in place. Rows are latents: the last dim is d_model."""
    w_dec_ND.div_(torch.linalg.vector_norm(w_dec_ND, dim=1, keepdim=True))
