"""The subject model's cross-entropy of the next token, in nats, on the tested half of the contexts.

Shapes: R tokens kept, D = d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scaling.evaluation.explain_activity import RowsToTensor
from scaling.evaluation.explain_bigram import bigrams, training_contexts
from scaling.evaluation.material import Material, TextBatch
from scaling.evaluation.n2g import Ints


@torch.no_grad()
def with_replaced(material: Material, replace: RowsToTensor | None) -> float:
    """Mean over the kept tokens that have a next one, with their residual replaced; None = as it
    is."""
    total, n_tokens = 0.0, 0
    for batch, tokens_R in tested(material):
        residual_CTD = batch.residual_CTD.clone()
        if replace is not None:
            kept_RD = residual_CTD[batch.kept_CT].float()
            residual_CTD[batch.kept_CT] = replace(kept_RD, tokens_R).to(residual_CTD)
        logits_CTV = material.subject.logits(batch.ids_CT, residual_CTD)
        predicts_CT = batch.kept_CT[:, :-1]
        next_P = batch.ids_CT.to(logits_CTV.device)[:, 1:][predicts_CT]
        ce_P = cross_entropy(logits_CTV[:, :-1][predicts_CT], next_P, reduction="none")
        total += float(ce_P.double().sum())
        n_tokens += len(ce_P)
    return total / n_tokens


def tested(material: Material) -> Iterator[tuple[TextBatch, Ints]]:
    """The contexts of odd number, with the kept tokens of each batch as context * T + token."""
    start, n_positions = 0, material.ids_CT.shape[1]
    for batch in material.batches():
        odd = torch.arange(start, start + len(batch.ids_CT)) % 2 == 1
        numbers_C = torch.arange(start, start + len(batch.ids_CT))[odd]
        start += len(batch.ids_CT)
        if not len(numbers_C):
            continue
        kept_CT = batch.kept_CT[odd.to(batch.kept_CT.device)]
        residual_CTD = batch.residual_CTD[odd.to(batch.residual_CTD.device)]
        tokens_CT = numbers_C[:, None] * n_positions + torch.arange(n_positions)
        yield (
            TextBatch(batch.ids_CT[odd], residual_CTD, kept_CT),
            tokens_CT[kept_CT.cpu()].numpy(),
        )


def baselines(
    material: Material, mean_D: Tensor, n_training_contexts: int
) -> dict[str, float | int]:
    """Without a run: the model as it is, with the mean vector for every token, and the bigram
    model."""
    contexts_CT = training_contexts(material, n_training_contexts)
    return {
        "ce": with_replaced(material, None),
        "ce_mean": with_replaced(material, lambda x_RD, _: mean_D.to(x_RD).expand_as(x_RD)),
        "bigram_ce": _of_bigrams(material, contexts_CT),
        "n_bigram_contexts": len(contexts_CT),
    }


def _of_bigrams(material: Material, contexts_CT: np.ndarray) -> float:
    model = bigrams(contexts_CT, material.subject.vocabulary)
    found = []
    for batch, _ in tested(material):
        predicts_CT = batch.kept_CT[:, :-1].cpu()
        first_P, second_P = batch.ids_CT[:, :-1][predicts_CT], batch.ids_CT[:, 1:][predicts_CT]
        found.append(model.cross_entropy(first_P.numpy(), second_P.numpy()))
    return float(np.concatenate(found).mean())


def recovered(ce: float, baseline: Mapping[str, float | int]) -> float | None:
    """The share of what the mean vector loses that is not lost; None where that loses nothing."""
    lost = baseline["ce_mean"] - baseline["ce"]
    return (baseline["ce_mean"] - ce) / lost if lost > 0 else None
