"""The decoder in two dimensions: a point for each latent, near ones have like directions.

PCA: unit decoder rows less their mean, along the two directions in which they vary most. UMAP
(McInnes et al. 2018) with cosine distance keeps neighbourhoods and not distances; it is an extra.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from scaling.errors import UserError

LAYOUTS = ("pca", "umap")
SEED = 0


def check(kind: str) -> None:
    """Raises UserError for a layout that there is not."""
    if kind not in LAYOUTS:
        raise UserError(f"density.layout={kind}: use {' or '.join(LAYOUTS)}.")


def require_package(kind: str) -> None:
    """Raises UserError where the layout's package is missing."""
    if kind == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError(
            "density.layout=umap needs umap-learn, which is not installed: "
            "pip install 'sae-scaling[map]' adds it, and density.layout=pca does without."
        )


def layout(rows_ND: Tensor, kind: str) -> Tensor:
    """Decoder rows [N, D] to points [N, 2], float32; a row of zeros counts as the mean."""
    unit_ND = rows_ND.double() / rows_ND.double().norm(dim=1, keepdim=True).clamp_min(1e-300)
    return _umap(unit_ND.float()) if kind == "umap" else pca(unit_ND).float()


def pca(unit_ND: Tensor) -> Tensor:
    """Rows along their first two principal directions, [N, 2]; each direction's sign is such that
    its largest component is positive, so that a layout does not flip from run to run."""
    centered_ND = unit_ND - unit_ND.mean(dim=0)
    directions_DD = torch.linalg.eigh(centered_ND.T @ centered_ND).eigenvectors
    first_D2 = directions_DD[:, -2:].flip(1)
    largest_2 = first_D2.gather(0, first_D2.abs().argmax(dim=0, keepdim=True))
    return centered_ND @ (first_D2 * largest_2.sign())


def _umap(unit_ND: Tensor) -> Tensor:
    umap: Any = importlib.import_module("umap")  # an extra: not there to be checked
    reducer = umap.UMAP(n_components=2, metric="cosine", random_state=SEED, n_jobs=1)
    return torch.from_numpy(reducer.fit_transform(unit_ND.numpy())).float()
