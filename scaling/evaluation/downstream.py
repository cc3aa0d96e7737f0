"""What the subject model loses when it reads the reconstruction instead of its residual stream.

    KL        mean over tokens of KL(p(. | x) || p(. | xhat)), in nats
    delta CE  mean over tokens of CE(xhat) - CE(x), the cross-entropy of the next token, in nats
    recovered (CE(baseline) - CE(xhat)) / (CE(baseline) - CE(x)), for the baselines of a residual
              stream of zeros and of the mean of the kept vectors
    fraction  C(CE(xhat)) / C(CE(x)), where C is the pretraining compute that reaches a loss, by a
              table of the user's (compute_table.py)

(Gao et al. 2024, section 4.1.) Tokens that no autoencoder is for (first positions, outliers) keep
their residual stream in all of them, and are counted; a token's logits count where its own residual
was replaced, and its cross-entropy where it has a next token too.

Shapes: C contexts, T tokens per context, D = d_model, V = vocabulary, R kept tokens of a context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaling.errors import UserError
from scaling.evaluation.compute_table import ComputeTable, OutsideTable
from scaling.evaluation.estimate import Estimate, Floats
from scaling.evaluation.material import Material, TextBatch
from scaling.evaluation.metric import Measured, Subject, Told

Replacement = Callable[[Tensor], Tensor]
"""Kept vectors [R, D], float32, to what stands in their place."""


@dataclass
class Options:
    """Of this metric."""

    compute_table: str | None = None
    """A CSV file with the columns compute and ce: losses of models like the subject model by their
    pretraining compute. With it, downstream_compute_fraction."""


class Losses(NamedTuple):
    """Sums over the tokens of each context, float64 [C]."""

    kl_C: Floats
    ce_before_C: Floats
    ce_after_C: Floats
    n_tokens_C: Floats
    """Whose residual was replaced."""
    n_predicted_C: Floats
    """Of these, with a next token."""
    n_left_C: Floats
    """Whose residual was left alone."""


class Downstream:
    """See the module."""

    name = "downstream"
    version = 1
    packages = ()
    on_text = True

    def settings(self, options: Options) -> Mapping[str, object]:
        table = _table(options)
        return {**asdict(options), "compute_table": None if table is None else table.digest}

    def measure(self, run: Subject, material: Material, options: Options, told: Told) -> Measured:
        zero_C, mean_C = material.once("downstream baselines", partial(_baselines, told=told))
        losses = substituted(material, run.autoencoder.reconstruct, told)
        n_tokens, n_predicted = losses.n_tokens_C.sum(), losses.n_predicted_C.sum()
        ce, ce_after = (float(one.sum() / n_predicted) for one in losses[1:3])
        if not math.isfinite(ce):
            raise UserError("the subject model's own loss is not finite: use dtype=bfloat16.")
        fraction, undefined = _fraction(_table(options), ce, ce_after)
        gained_C = losses.ce_after_C - losses.ce_before_C
        ratios = {
            "downstream_kl": (losses.kl_C, losses.n_tokens_C),
            "downstream_delta_ce": (gained_C, losses.n_predicted_C),
            "loss_recovered_zero": _recovered(losses, zero_C),
            "loss_recovered_mean": _recovered(losses, mean_C),
        }
        estimates = {
            column: Estimate.ratio(*ratio, "contexts").joined(material.documents_C, "documents")
            for column, ratio in ratios.items()
        }
        nothing = [column for column, one in estimates.items() if one.value is None]
        undefined |= dict.fromkeys(nothing, "its baseline loses nothing that could be recovered")
        notes = {
            **{"ce": ce, "ce_zero": float(zero_C.sum() / n_predicted)},
            **{"ce_mean": float(mean_C.sum() / n_predicted), "n_tokens": int(n_tokens)},
            **{"n_predicted": int(n_predicted), "n_left": int(losses.n_left_C.sum())},
            "undefined": undefined,
        }
        return Measured.of(estimates, notes, exact=fraction, units=material.units)


def substituted(material: Material, replace: Replacement, told: Told | None = None) -> Losses:
    """The subject model's losses with kept vectors replaced, over all of the material."""
    rows: list[tuple[float, ...]] = []
    for batch, after_CTV in _replaced_logits(material, replace, told):
        before_CTV = material.subject.logits(batch.ids_CT, batch.residual_CTD)
        # A context at a time: temporaries of V logits for each token are what costs.
        contexts = zip(before_CTV, after_CTV, batch.ids_CT, batch.kept_CT, strict=True)
        rows += [_of_context(*context) for context in contexts]
    losses = Losses(*np.asarray(rows, np.float64).T)
    _require_tokens(losses.n_predicted_C)
    return losses


def _of_context(
    before_TV: Tensor, after_TV: Tensor, ids_T: Tensor, kept_T: Tensor
) -> tuple[float, ...]:
    """As in `Losses`, from the logits of the subject model as it is and with the replacement."""
    log_p_RV = before_TV[kept_T].log_softmax(dim=1)
    log_q_RV = after_TV[kept_T].log_softmax(dim=1)
    # 0 exactly where the logits are equal.
    kl = float((log_p_RV.exp() * (log_p_RV - log_q_RV)).sum(dim=1).double().sum())
    next_P1, has_next_R = _next_tokens(ids_T, kept_T)
    before = -float(log_p_RV[has_next_R].gather(1, next_P1).double().sum())
    after = -float(log_q_RV[has_next_R].gather(1, next_P1).double().sum())
    n_tokens = int(kept_T.sum())
    return kl, before, after, n_tokens, len(next_P1), len(kept_T) - n_tokens


def ce_with(material: Material, replace: Replacement, told: Told | None = None) -> Floats:
    """Cross-entropies of the next token with kept vectors replaced, in nats, summed over the tokens
    of each context, [C]."""
    sums, counts = [], []
    for batch, after_CTV in _replaced_logits(material, replace, told):
        for after_TV, ids_T, kept_T in zip(after_CTV, batch.ids_CT, batch.kept_CT, strict=True):
            next_P1, has_next_R = _next_tokens(ids_T, kept_T)
            log_q_RV = after_TV[kept_T].log_softmax(dim=1)
            sums.append(-float(log_q_RV[has_next_R].gather(1, next_P1).double().sum()))
            counts.append(len(next_P1))
    _require_tokens(np.asarray(counts))
    return np.asarray(sums, np.float64)


def replaced(batch: TextBatch, replace: Replacement) -> Tensor:
    """The residual stream with its kept vectors replaced, [C, T, D], in the subject's dtype."""
    residual_CTD = batch.residual_CTD.clone()
    kept_RD = residual_CTD[batch.kept_CT].float()
    residual_CTD[batch.kept_CT] = replace(kept_RD).to(residual_CTD)
    return residual_CTD


def mean_of_kept(material: Material) -> Tensor:
    """float32 [D]."""
    kept = [batch.residual_CTD[batch.kept_CT].double() for batch in material.batches()]
    return torch.cat(kept).mean(dim=0).float()


@torch.no_grad()
def _replaced_logits(material: Material, replace: Replacement, told: Told | None) -> Any:
    """Batches with their logits [C, T, V]."""
    done = 0
    for batch in material.batches():
        yield batch, material.subject.logits(batch.ids_CT, replaced(batch, replace))
        done += len(batch.ids_CT)
        if told is not None:
            told(done, len(material.ids_CT))


def _next_tokens(ids_T: Tensor, kept_T: Tensor) -> tuple[Tensor, Tensor]:
    """Ids that follow kept tokens, [P, 1], and which of the R kept tokens have one."""
    predicts_T = kept_T.clone()
    predicts_T[-1] = False
    return ids_T.roll(-1)[predicts_T][:, None], predicts_T[kept_T]


def _require_tokens(n_predicted_C: NDArray[Any]) -> None:
    if not n_predicted_C.sum():
        raise UserError(
            "no token of the held-out contexts is both kept and followed by another: raise "
            "contexts."
        )


def _baselines(material: Material, told: Told) -> tuple[Floats, Floats]:
    """Of each context, with zeros and with the mean vector. None of a run's: kept for the next."""
    mean_D = mean_of_kept(material)
    zero_C = ce_with(material, torch.zeros_like, told)
    return zero_C, ce_with(material, lambda x_RD: mean_D.expand_as(x_RD), told)


def _recovered(losses: Losses, baseline_C: Floats) -> tuple[Floats, Floats]:
    """Of each context, to be divided; by 0 where the baseline loses nothing that could be
    recovered."""
    kept_C, lost_C = baseline_C - losses.ce_after_C, baseline_C - losses.ce_before_C
    if lost_C.sum() <= 0:
        lost_C = np.zeros_like(lost_C)
    return kept_C, lost_C


def _table(options: Options) -> ComputeTable | None:
    path = options.compute_table
    return None if path is None else ComputeTable.read(Path(path).expanduser())


def _fraction(
    table: ComputeTable | None, ce: float, ce_after: float
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The column and, where it has no value, the reason."""
    column = "downstream_compute_fraction"
    if table is None:
        return {}, {}
    try:
        return {column: table.compute(ce_after) / table.compute(ce)}, {}
    except OutsideTable as error:
        return {column: None}, {column: str(error)}
