"""The subject model's cross-entropy of the next token, in nats, on the tested half of the contexts.

Shapes: R tokens kept, D = d_model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scaling.errors import UserError
from scaling.evaluation.estimate import Estimate
from scaling.evaluation.explain_activity import RowsToTensor
from scaling.evaluation.explain_bigram import bigrams, training_contexts
from scaling.evaluation.halves import is_tested
from scaling.evaluation.material import Material, TextBatch
from scaling.evaluation.n2g import Ints


@torch.no_grad()
def with_replaced(material: Material, replace: RowsToTensor | None) -> Estimate:
    """Mean over the kept tokens that have a next one, with their residual replaced; None = as it
    is."""
    sums, counts = [], []
    for batch, tokens_R in tested(material):
        residual_CTD = batch.residual_CTD.clone()
        if replace is not None:
            kept_RD = residual_CTD[batch.kept_CT].float()
            residual_CTD[batch.kept_CT] = replace(kept_RD, tokens_R).to(residual_CTD)
        logits_CTV = material.subject.logits(batch.ids_CT, residual_CTD)
        predicts_CT = batch.kept_CT[:, :-1]
        next_P = batch.ids_CT.to(logits_CTV.device)[:, 1:][predicts_CT]
        ce_P = cross_entropy(logits_CTV[:, :-1][predicts_CT], next_P, reduction="none")
        # In the order of the text: those of a context follow each other.
        for ce_of_context_P in ce_P.double().cpu().split(predicts_CT.sum(dim=1).tolist()):
            sums.append(float(ce_of_context_P.sum()))
            counts.append(len(ce_of_context_P))
    return _over_documents(material, sums, counts)


def tested(material: Material) -> Iterator[tuple[TextBatch, Ints]]:
    """The contexts to test, with the kept tokens of each batch as context * T + token."""
    start, n_positions = 0, material.ids_CT.shape[1]
    tested_C = torch.from_numpy(is_tested(material.documents_C))
    for batch in material.batches():
        here = tested_C[start : start + len(batch.ids_CT)]
        numbers_C = start + here.nonzero()[:, 0]
        start += len(batch.ids_CT)
        if not len(numbers_C):
            continue
        kept_CT = batch.kept_CT[here.to(batch.kept_CT.device)]
        residual_CTD = batch.residual_CTD[here.to(batch.residual_CTD.device)]
        tokens_CT = numbers_C[:, None] * n_positions + torch.arange(n_positions)
        yield (
            TextBatch(batch.ids_CT[here], residual_CTD, kept_CT),
            tokens_CT[kept_CT.cpu()].numpy(),
        )


def _over_documents(material: Material, sums: list[float], counts: list[int]) -> Estimate:
    """Of each context tested."""
    documents_C = material.documents_C[is_tested(material.documents_C)]
    return Estimate.ratio(sums, counts, "contexts").joined(documents_C, "documents")


class Baselines(NamedTuple):
    """Of no run."""

    model: Estimate
    """The subject model as it is."""
    mean: Estimate
    """With the mean vector for every token."""
    bigrams: Estimate
    n_bigram_contexts: int

    def recovered(self, ce: float) -> float | None:
        """The share of what the mean vector loses that is not lost; None where that loses nothing.

        Raises:
            UserError: there is no token whose next one could be predicted.
        """
        without, model = _defined(self.mean), _defined(self.model)
        return (without - ce) / (without - model) if without > model else None


def baselines(material: Material, mean_D: Tensor, n_training_contexts: int) -> Baselines:
    """The bigram model counts the first `n_training_contexts` of the training text."""
    contexts_CT = training_contexts(material, n_training_contexts)
    return Baselines(
        model=with_replaced(material, None),
        mean=with_replaced(material, lambda x_RD, _: mean_D.to(x_RD).expand_as(x_RD)),
        bigrams=_of_bigrams(material, contexts_CT),
        n_bigram_contexts=len(contexts_CT),
    )


def _of_bigrams(material: Material, contexts_CT: np.ndarray) -> Estimate:
    model = bigrams(contexts_CT, material.subject.vocabulary)
    sums, counts = [], []
    for batch, _ in tested(material):
        for ids_T, kept_T in zip(batch.ids_CT.cpu(), batch.kept_CT.cpu(), strict=True):
            predicts_T = kept_T[:-1]
            pairs = ids_T[:-1][predicts_T].numpy(), ids_T[1:][predicts_T].numpy()
            sums.append(float(model.cross_entropy(*pairs).sum()))
            counts.append(int(predicts_T.sum()))
    return _over_documents(material, sums, counts)


def _defined(ce: Estimate) -> float:
    if ce.value is None:
        raise UserError(
            "explain.contexts: no token of the tested half is both kept and followed by another: "
            "raise it."
        )
    return ce.value
