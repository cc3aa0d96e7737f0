"""Held-out vectors without a subject model: what metrics that look at vectors alone need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaling.evaluation.material import TextBatch
from scaling.evaluation.metric import Subject
from scaling.interchange.portable import Portable
from tests.portables import model_of


class Vectors:
    """`Material` of residual streams that are given, in batches of two contexts."""

    has_text = True
    units = "vectors"

    def __init__(self, residual_CTD: Tensor, kept_CT: Tensor | None = None) -> None:
        self.residual_CTD = residual_CTD
        everything_CT = torch.ones(residual_CTD.shape[:2], dtype=torch.bool)
        self.kept_CT = everything_CT if kept_CT is None else kept_CT
        self._made: dict[str, Any] = {}

    def batches(self) -> Iterator[TextBatch]:
        for rows in torch.arange(len(self.residual_CTD)).split(2):
            ids_CT = torch.zeros(self.kept_CT[rows].shape, dtype=torch.int64)
            yield TextBatch(ids_CT, self.residual_CTD[rows], self.kept_CT[rows])

    def once(self, name: str, make: Callable[[Vectors], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make(self)
        return self._made[name]


def random_vectors(d_model: int, n_contexts: int = 12, n_tokens: int = 8) -> Vectors:
    """Of a few directions with noise; the first position is left out."""
    generator = torch.Generator().manual_seed(3)
    directions_RD = torch.randn(40, d_model, generator=generator)
    weights_CTR = torch.randn(n_contexts, n_tokens, 40, generator=generator).relu() ** 3
    residual_CTD = 5 * weights_CTR @ directions_RD + 0.3
    kept_CT = torch.ones(n_contexts, n_tokens, dtype=torch.bool)
    kept_CT[:, 0] = False
    return Vectors(residual_CTD, kept_CT)


def subject(portable: Portable, folder: Path) -> Subject:
    return Subject("run", folder, model_of(portable))


def untold(done: int, total: int) -> None:
    del done, total
