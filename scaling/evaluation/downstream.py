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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.evaluation.compute_table import ComputeTable, OutsideTable
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


@dataclass
class Sums:
    """Over tokens, float64."""

    kl: float = 0.0
    ce_before: float = 0.0
    ce_after: float = 0.0
    n_tokens: int = 0
    """Whose residual was replaced."""
    n_predicted: int = 0
    """Of these, with a next token."""
    n_left: int = 0
    """Whose residual was left alone."""
    of_contexts: list[tuple[float, float, int, int]] = field(default_factory=list)
    """KL, cross-entropy gained, tokens and predicted tokens of each."""

    @property
    def delta_ce(self) -> float:
        return (self.ce_after - self.ce_before) / self.n_predicted

    def add(self, before_TV: Tensor, after_TV: Tensor, ids_T: Tensor, kept_T: Tensor) -> None:
        """Logits of one context, of the subject model as it is and with the replacement."""
        log_p_RV = before_TV[kept_T].log_softmax(dim=1)
        log_q_RV = after_TV[kept_T].log_softmax(dim=1)
        # 0 exactly where the logits are equal.
        kl = float((log_p_RV.exp() * (log_p_RV - log_q_RV)).sum(dim=1).double().sum())
        next_P1, has_next_R = _next_tokens(ids_T, kept_T)
        before = -float(log_p_RV[has_next_R].gather(1, next_P1).double().sum())
        after = -float(log_q_RV[has_next_R].gather(1, next_P1).double().sum())
        n_tokens = int(kept_T.sum())
        self.kl += kl
        self.ce_before += before
        self.ce_after += after
        self.n_tokens += n_tokens
        self.n_predicted += len(next_P1)
        self.n_left += len(kept_T) - n_tokens
        self.of_contexts.append((kl, after - before, n_tokens, len(next_P1)))

    def standard_errors(self) -> tuple[float | None, float | None]:
        """Of KL and delta CE, as of means over contexts drawn at random; None of one context."""
        kls, gained, n_tokens, n_predicted = zip(*self.of_contexts, strict=True)
        return standard_error(kls, n_tokens), standard_error(gained, n_predicted)


def standard_error(sums: Sequence[float], counts: Sequence[int]) -> float | None:
    """Of sum(sums) / sum(counts) over clusters, by linearization."""
    n, total = len(sums), sum(counts)
    if n < 2:
        return None
    mean = sum(sums) / total
    spread = sum((one - mean * count) ** 2 for one, count in zip(sums, counts, strict=True))
    return math.sqrt(spread * n / (n - 1)) / total


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
        zero, mean = material.once("downstream baselines", partial(_baselines, told=told))
        sums = substituted(material, run.autoencoder.reconstruct, told)
        ce, ce_after = sums.ce_before / sums.n_predicted, sums.ce_after / sums.n_predicted
        if not math.isfinite(ce):
            raise UserError("the subject model's own loss is not finite: use dtype=bfloat16.")
        kl_error, delta_ce_error = sums.standard_errors()
        fraction, undefined = _fraction(_table(options), ce, ce_after)
        recovered = {
            "loss_recovered_zero": _recovered(ce, ce_after, zero),
            "loss_recovered_mean": _recovered(ce, ce_after, mean),
        }
        for column in [column for column, value in recovered.items() if value is None]:
            undefined[column] = "the subject model loses nothing by the baseline on this text"
        return Measured(
            numbers={
                "downstream_kl": sums.kl / sums.n_tokens,
                "downstream_delta_ce": sums.delta_ce,
                **recovered,
                **fraction,
            },
            notes={
                "downstream_kl_standard_error": kl_error,
                "downstream_delta_ce_standard_error": delta_ce_error,
                "ce": ce,
                "ce_zero": zero,
                "ce_mean": mean,
                "n_tokens": sums.n_tokens,
                "n_predicted": sums.n_predicted,
                "n_left": sums.n_left,
                **({"undefined": undefined} if undefined else {}),
            },
        )


def substituted(material: Material, replace: Replacement, told: Told | None = None) -> Sums:
    """The subject model's losses with kept vectors replaced, over all of the material."""
    sums = Sums()
    for batch, after_CTV in _replaced_logits(material, replace, told):
        before_CTV = material.subject.logits(batch.ids_CT, batch.residual_CTD)
        # A context at a time: temporaries of V logits for each token are what costs.
        for one in zip(before_CTV, after_CTV, batch.ids_CT, batch.kept_CT, strict=True):
            sums.add(*one)
    _require_tokens(sums.n_predicted)
    return sums


def ce_with(material: Material, replace: Replacement, told: Told | None = None) -> float:
    """Mean cross-entropy of the next token, in nats, with kept vectors replaced."""
    total, n_predicted = 0.0, 0
    for batch, after_CTV in _replaced_logits(material, replace, told):
        for after_TV, ids_T, kept_T in zip(after_CTV, batch.ids_CT, batch.kept_CT, strict=True):
            next_P1, has_next_R = _next_tokens(ids_T, kept_T)
            log_q_RV = after_TV[kept_T].log_softmax(dim=1)
            total -= float(log_q_RV[has_next_R].gather(1, next_P1).double().sum())
            n_predicted += len(next_P1)
    _require_tokens(n_predicted)
    return total / n_predicted


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


def _require_tokens(n_predicted: int) -> None:
    if not n_predicted:
        raise UserError(
            "no token of the held-out contexts is both kept and followed by another: raise "
            "contexts."
        )


def _baselines(material: Material, told: Told) -> tuple[float, float]:
    """Cross-entropies with zeros, and with the mean vector. None of a run's: kept for the next."""
    mean_D = mean_of_kept(material)
    zero = ce_with(material, torch.zeros_like, told)
    return zero, ce_with(material, lambda x_RD: mean_D.expand_as(x_RD), told)


def _recovered(ce: float, ce_after: float, ce_baseline: float) -> float | None:
    """None where the baseline loses nothing: then nothing can be recovered."""
    lost = ce_baseline - ce
    return (ce_baseline - ce_after) / lost if lost > 0 else None


def _table(options: Options) -> ComputeTable | None:
    path = options.compute_table
    return None if path is None else ComputeTable.read(Path(path).expanduser())


def _fraction(
    table: ComputeTable | None, ce: float, ce_after: float
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The column and, where it has no value, why."""
    column = "downstream_compute_fraction"
    if table is None:
        return {}, {}
    try:
        return {column: table.compute(ce_after) / table.compute(ce)}, {}
    except OutsideTable as error:
        return {column: None}, {column: str(error)}
