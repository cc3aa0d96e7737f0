"""The probe that reads all channels at once: what a linear map of the residual stream can tell.

With more channels than examples it separates any labels, so its ridge is chosen among `RIDGES` by
cross-validation on the training examples, whose folds split no document. Loss and standardization
as in probes_fit.py.

Shapes: E examples, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from scaling.evaluation.probes_fit import (
    GRADIENT_TOLERANCE,
    MAX_HALVINGS,
    MAX_STEPS,
    cross_entropy,
    softplus,
    standard,
)

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 4


def fit_with_chosen_ridge(
    features_EF: Tensor, labels_E: Tensor, documents: Sequence[int]
) -> Linear:
    """The probe of the ridge that does best on documents that it was not fitted to.

    `documents` [E]: examples of equal numbers stay in one fold.
    """
    fold_E = torch.tensor(_folds(documents), device=labels_E.device)
    losses = dict.fromkeys(RIDGES, 0.0)
    for fold in range(FOLDS):
        held = fold_E == fold
        if held.any() and len(labels_E[~held].unique()) == 2:
            for linear in fit_all(features_EF[~held], labels_E[~held], RIDGES):
                logits_E = linear.logits(features_EF[held])
                losses[linear.ridge] += cross_entropy(logits_E, labels_E[held]) * int(held.sum())
    [chosen] = fit_all(features_EF, labels_E, [min(RIDGES, key=lambda ridge: losses[ridge])])
    return chosen


def _folds(documents: Sequence[int]) -> list[int]:
    number = {document: n for n, document in enumerate(dict.fromkeys(documents))}
    return [number[document] % FOLDS for document in documents]


@dataclass(frozen=True)
class Linear:
    """A probe of all features together."""

    weight_F: Tensor
    bias: float
    mean_F: Tensor
    deviation_F: Tensor
    ridge: float

    def logits(self, features_EF: Tensor) -> Tensor:
        """[E]."""
        z_EF = (features_EF.double() - self.mean_F) / self.deviation_F
        return z_EF @ self.weight_F + self.bias


def fit_all(features_EF: Tensor, labels_E: Tensor, ridges: Sequence[float]) -> list[Linear]:
    """One probe of all features for each ridge, with the loss of probes_fit.py and
    ridge / 2 * |w|^2."""
    features_EF = features_EF.double()
    mean_F, deviation_F = standard(features_EF)
    z_EF = (features_EF - mean_F) / deviation_F
    # The minimum lies in the span of the examples: no more unknowns than examples.
    u_EE, s_E, v_EF = linalg.svd(z_EF, full_matrices=False)
    design = torch.cat([u_EE * s_E, torch.ones_like(z_EF[:, :1])], dim=1)
    y_E = labels_E.double()
    found: list[Linear] = []
    a = torch.zeros_like(design[0])
    a[-1] = y_E.mean().logit()
    for ridge in sorted(ridges, reverse=True):  # each begins where the next larger ended
        a = _newton(design, y_E, ridge, a)
        found.append(Linear(a[:-1] @ v_EF, float(a[-1]), mean_F, deviation_F, ridge))
    return found


def _newton(design: Tensor, y_E: Tensor, ridge: float, a: Tensor) -> Tensor:
    """The minimum, from `a`. The last column of the design is the bias's, without a ridge."""
    penalty = torch.full_like(a, ridge)
    penalty[-1] = 0.0

    def objective(a: Tensor) -> float:
        logits = design @ a
        fit = (softplus(logits) - y_E * logits).mean()
        return float(fit + (penalty * a * a).sum() / 2)

    for _ in range(MAX_STEPS):
        p_E = (design @ a).sigmoid()
        gradient = design.T @ (p_E - y_E) / len(y_E) + penalty * a
        slope_E = p_E * (1 - p_E) / len(y_E)
        hessian = (design.T * slope_E) @ design + penalty.diag()
        step = linalg.solve(hessian, gradient)
        before, size = objective(a), 1.0
        while objective(a - size * step) > before * (1 + 1e-14) and size > 2.0**-MAX_HALVINGS:
            size /= 2
        a = a - size * step
        if gradient.abs().max() < GRADIENT_TOLERANCE:
            break
    return a
