"""What the subject model loses when it reads the reconstruction instead of its residual stream.

    KL        mean over tokens of KL(p(. | x) || p(. | xhat)), in nats
    delta CE  mean over tokens of CE(xhat) - CE(x), the cross-entropy of the next token, in nats
    recovered (CE(baseline) - CE(xhat)) / (CE(baseline) - CE(x)), for the baselines of a residual
              stream of zeros and of the mean of the kept vectors

(Gao et al. 2024, section 4.1.) Tokens that no autoencoder is for (first positions, outliers) keep
their residual stream in all of them, and are counted; a token's logits count where its own residual
was replaced, and its cross-entropy where it has a next token too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scaling.evaluation.material import Material, TextBatch
from scaling.evaluation.metric import Measured, Subject, Told

Replacement = Callable[[Tensor], Tensor]
"""Kept vectors [R, D], float32, to what stands in their place."""


@dataclass
class Options:
    """Of this metric: none."""


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

    def add(self, before_CTV: Tensor, after_CTV: Tensor, batch: TextBatch) -> None:
        """Logits of the subject model, as it is and with the replacement."""
        kept_CT = batch.kept_CT
        self.kl += float(_kl(before_CTV[kept_CT], after_CTV[kept_CT]).double().sum())
        predicts_CT = kept_CT[:, :-1]
        next_P = batch.ids_CT[:, 1:][predicts_CT].to(before_CTV.device)
        for name, logits_CTV in (("ce_before", before_CTV), ("ce_after", after_CTV)):
            ce_P = cross_entropy(logits_CTV[:, :-1][predicts_CT], next_P, reduction="none")
            setattr(self, name, getattr(self, name) + float(ce_P.double().sum()))
        self.n_tokens += int(kept_CT.sum())
        self.n_predicted += len(next_P)
        self.n_left += int((~kept_CT).sum())


class Downstream:
    """See the module."""

    name = "downstream"
    version = 1
    packages = ()
    on_text = True

    def settings(self, options: Options) -> Mapping[str, object]:
        return asdict(options)

    def measure(self, run: Subject, material: Material, options: Options, told: Told) -> Measured:
        del options
        sums = substituted(material, run.autoencoder.reconstruct, told)
        zero, mean = material.once("downstream baselines", _baselines)
        return Measured(
            numbers={
                "downstream_kl": sums.kl / sums.n_tokens,
                "downstream_delta_ce": _delta_ce(sums),
                "loss_recovered_zero": _recovered(sums, zero),
                "loss_recovered_mean": _recovered(sums, mean),
            },
            notes={
                "ce": sums.ce_before / sums.n_predicted,
                "ce_zero": zero.ce_after / zero.n_predicted,
                "ce_mean": mean.ce_after / mean.n_predicted,
                "n_tokens": sums.n_tokens,
                "n_predicted": sums.n_predicted,
                "n_left": sums.n_left,
            },
        )


def _baselines(material: Material) -> tuple[Sums, Sums]:
    """Of zeros, and of the mean vector."""
    mean_D = mean_of_kept(material)
    zero = substituted(material, torch.zeros_like)
    return zero, substituted(material, lambda x_RD: mean_D.expand_as(x_RD))


def substituted(material: Material, replace: Replacement, told: Told | None = None) -> Sums:
    """The subject model's losses with kept vectors replaced, over all of the material."""
    sums = Sums()
    n_contexts = len(material.ids_CT)
    done = 0
    for batch in material.batches():
        with torch.no_grad():
            before_CTV = material.subject.logits(batch.ids_CT, batch.residual_CTD)
            after_CTV = material.subject.logits(batch.ids_CT, replaced(batch, replace))
        sums.add(before_CTV, after_CTV, batch)
        done += len(batch.ids_CT)
        if told is not None:
            told(done, n_contexts)
    return sums


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


def _kl(before_RV: Tensor, after_RV: Tensor) -> Tensor:
    """KL(before || after) of each row of logits, in nats; 0 to rounding where they are equal."""
    log_p_RV, log_q_RV = before_RV.log_softmax(dim=1), after_RV.log_softmax(dim=1)
    return (log_p_RV.exp() * (log_p_RV - log_q_RV)).sum(dim=1)


def _delta_ce(sums: Sums) -> float:
    return (sums.ce_after - sums.ce_before) / sums.n_predicted


def _recovered(sums: Sums, baseline: Sums) -> float | None:
    """None where the baseline loses nothing: then nothing can be recovered."""
    lost = _delta_ce(baseline)
    return (lost - _delta_ce(sums)) / lost if lost > 0 else None
