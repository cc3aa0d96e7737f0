"""The held-out text in two halves of whole documents: to build explanations on, and to test them.

Contexts of one document share names, phrases and subject. With some of them on each side, patterns
are tested on what they were made from: by contexts, recall on the embedded text is a tenth to a
quarter larger than by documents.

Shapes: C contexts, T tokens, R tokens kept, D = d_model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaling.activations.contexts import Documents
from scaling.errors import UserError
from scaling.evaluation.material import Material
from scaling.evaluation.n2g import Ints


@dataclass(frozen=True)
class Half:
    """Kept tokens of the contexts of a half, as context * T + token, and their vectors."""

    tokens_R: Ints
    x_RD: Tensor


def is_tested(documents_C: Documents) -> NDArray[np.bool_]:
    """Which contexts are to test, [C]. The largest document first, each goes to the half that has
    fewer contexts so far; of a single document, every other context."""
    documents, counts = np.unique(documents_C, return_counts=True)
    if len(documents) < 2:
        return np.arange(len(documents_C)) % 2 == 1
    sizes, tested = [0, 0], []
    for place in np.lexsort((documents, -counts)):
        half = int(sizes[1] < sizes[0])
        sizes[half] += int(counts[place])
        if half:
            tested.append(documents[place])
    return np.isin(documents_C, tested)


def halves(material: Material) -> tuple[Half, Half]:
    """To build on, and to test.

    Raises:
        UserError: one of them has no kept token.
    """
    batches = list(material.batches())
    kept_CT = torch.cat([batch.kept_CT for batch in batches]).cpu()
    residual_CTD = torch.cat([batch.residual_CTD for batch in batches])
    tested_C = torch.from_numpy(is_tested(material.documents_C))
    if not (kept_CT[~tested_C].any() and kept_CT[tested_C].any()):
        raise UserError(
            f"explain.contexts: {len(kept_CT)} held-out contexts are too few, since explanations "
            "are built on one half of them and tested on the other."
        )
    tokens_CT = torch.arange(kept_CT.numel()).view_as(kept_CT)
    masks = (kept_CT & ~tested_C[:, None], kept_CT & tested_C[:, None])
    return tuple(  # type: ignore[return-value]
        Half(tokens_CT[mask_CT].numpy(), residual_CTD[mask_CT.to(residual_CTD.device)].float())
        for mask_CT in masks
    )
