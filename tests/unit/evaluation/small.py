"""A metric's surroundings in small: text of one's choosing, and an autoencoder for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scaling.activations.held_out import HeldOut
from scaling.activations.request import make_request
from scaling.config import HarvestConfig
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Subject
from scaling.interchange.model import LoadedAutoencoder
from scaling.interchange.portable import Portable
from tests.portables import model_of


def material_of(
    config: HarvestConfig,
    data_dir: Path,
    ids_CT: Tensor,
    max_norm: float = np.inf,
    dtype: str | None = None,
    documents: Sequence[int] | None = None,
) -> Material:
    """Of these contexts, whose first token is no vector; each is a document if not said."""
    material = Material(
        make_request(config, data_dir), n_contexts=len(ids_CT), batch_contexts=3, dtype=dtype
    )
    contexts_CT = ids_CT.numpy().astype(np.int32)
    documents_C = np.arange(len(ids_CT)) if documents is None else np.array(documents)
    material.__dict__["held_out"] = HeldOut(
        contexts_CT, documents_C.astype(np.uint64), drop_positions=1, max_norm=max_norm
    )
    return material


def autoencoder(
    d_model: int, n_latents: int = 40, k: int = 4, normalization: str = "unit_norm"
) -> LoadedAutoencoder:
    """Random, of kind topk."""
    generator = torch.Generator().manual_seed(0)
    w_dec_ND = torch.randn(n_latents, d_model, generator=generator)
    weights = {
        "w_enc": torch.randn(n_latents, d_model, generator=generator),
        "w_dec": w_dec_ND / w_dec_ND.norm(dim=1, keepdim=True),
        "b_enc": torch.zeros(n_latents),
        "b_pre": torch.randn(d_model, generator=generator) * 0.1,
    }
    return model_of(
        Portable(
            kind="topk", weights=weights, k=k, normalization=normalization, architecture="topk"
        )
    )


def subject_of(model: LoadedAutoencoder, folder: Path) -> Subject:
    return Subject("run", folder, model)
