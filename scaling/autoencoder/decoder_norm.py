"""Unit-norm decoder rows: a latent's direction and its strength are told apart."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def remove_parallel_gradient_(grad_ND: Tensor, w_dec_ND: Tensor) -> None:
    """Take from each row's gradient, in place, the component along the (unit) row itself.

    That component would only change the norm, which renormalization undoes; left in, it would
    still feed Adam's moments.
    """
    along_N = torch.linalg.vecdot(grad_ND, w_dec_ND)
    grad_ND.addcmul_(along_N[:, None], w_dec_ND, value=-1)


@torch.no_grad()
def renormalize_rows_(w_dec_ND: Tensor) -> None:
    """Scale each latent's row to unit norm, in place. Rows are latents: the last dim is d_model."""
    w_dec_ND.div_(torch.linalg.vector_norm(w_dec_ND, dim=1, keepdim=True))
