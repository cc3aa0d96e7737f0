"""Logistic probes of one feature each, for all features at once.

With z a feature, standardized by mean and deviation of the training examples, and y in {0, 1}:

    loss(w, b) = mean of [log(1 + exp(w z + b)) - y (w z + b)]  +  ridge / 2 * w^2

The ridge makes the minimum finite where a feature separates the labels. scikit-learn's minimum is
the same at C = 1 / (ridge * examples). Newton's steps, halved where they would not descend, in
float64 throughout.

Shapes: E examples, F features, each with a probe of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, linalg
from torch.nn import functional

RIDGE = 1e-4
MAX_STEPS = 100
MAX_HALVINGS = 30
GRADIENT_TOLERANCE = 1e-7
"""One more step is taken from there: Newton's then leaves about its square."""
BLOCK_FEATURES = 256
"""Fitted together: few enough to stay in a core's cache."""
CONSTANT = 1e-12
"""A feature whose deviation is below this part of its size says nothing."""


class Probes(NamedTuple):
    """Probes of standardized features, float64 [F] each."""

    weight_F: Tensor
    bias_F: Tensor
    mean_F: Tensor
    deviation_F: Tensor
    loss_F: Tensor
    """Cross-entropy on what they were fitted to, in nats, without the ridge."""

    def logits(self, feature: int, values_E: Tensor) -> Tensor:
        """[E], of one feature's probe."""
        z_E = (values_E.double() - self.mean_F[feature]) / self.deviation_F[feature]
        return z_E * self.weight_F[feature] + self.bias_F[feature]


def fit_each(features_EF: Tensor, labels_E: Tensor, ridge: float = RIDGE) -> Probes:
    """A one-dimensional probe for every feature. `labels_E`: bool, both values present."""
    blocks = features_EF.split(BLOCK_FEATURES, dim=1)
    fitted = [_fit_block(block_EF.double(), labels_E.double(), ridge) for block_EF in blocks]
    return Probes(*(torch.cat(parts) for parts in zip(*fitted, strict=True)))


def _fit_block(features_EF: Tensor, y_E: Tensor, ridge: float) -> Probes:
    mean_F, deviation_F = standard(features_EF)
    # Rows of features: sums over examples then run over adjacent memory.
    losses = everything = _Losses(((features_EF - mean_F) / deviation_F).T.contiguous(), y_E, ridge)
    weight_F = torch.zeros_like(mean_F)
    bias_F = torch.full_like(mean_F, float(y_E.mean().logit()))
    left_F = torch.arange(len(mean_F), device=y_E.device)
    for _ in range(MAX_STEPS):
        w_F, b_F = weight_F[left_F], bias_F[left_F]
        step, moving_F = losses.newton_step(w_F, b_F)
        weight_F[left_F], bias_F[left_F] = losses.descended((w_F, b_F), step)
        if not moving_F.any():
            break
        if not moving_F.all():
            left_F, losses = left_F[moving_F], losses.of(moving_F)
    loss_F = everything.value(weight_F, bias_F) - ridge / 2 * weight_F.square()
    return Probes(weight_F, bias_F, mean_F, deviation_F, loss_F)


class _Losses:
    """The losses of probes of standardized features, rows of `z_FE`."""

    def __init__(self, z_FE: Tensor, y_E: Tensor, ridge: float) -> None:
        self._z_FE, self._y_E, self._ridge = z_FE, y_E, ridge
        self._yz_F, self._y = z_FE @ y_E / len(y_E), float(y_E.mean())

    def of(self, which_F: Tensor) -> _Losses:
        return _Losses(self._z_FE[which_F], self._y_E, self._ridge)

    def newton_step(self, w_F: Tensor, b_F: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """What Newton would subtract from weights and biases, and which are not at the minimum."""
        n = len(self._y_E)
        p_FE = self._logits(w_F, b_F).sigmoid_()
        grad_w = linalg.vecdot(p_FE, self._z_FE) / n - self._yz_F + self._ridge * w_F
        grad_b = p_FE.mean(dim=1) - self._y
        slope_FE = p_FE.addcmul_(p_FE, p_FE, value=-1)
        bb = slope_FE.mean(dim=1)
        slope_z_FE = slope_FE.mul_(self._z_FE)
        wb = slope_z_FE.mean(dim=1)
        ww = linalg.vecdot(slope_z_FE, self._z_FE) / n + self._ridge
        # Positive: ww * bb >= wb^2 without the ridge, and the ridge adds ridge * bb.
        determinant = (ww * bb - wb * wb).clamp_min(torch.finfo(torch.float64).tiny)
        step_w = (bb * grad_w - wb * grad_b) / determinant
        step_b = (ww * grad_b - wb * grad_w) / determinant
        moving_F = torch.maximum(grad_w.abs(), grad_b.abs()) > GRADIENT_TOLERANCE
        return (step_w, step_b), moving_F

    def descended(
        self, at: tuple[Tensor, Tensor], step: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`at` less the longest of the step, half of it, ... that does not raise the loss."""
        (w_F, b_F), (step_w, step_b) = at, step
        before_F = self.value(w_F, b_F)
        # A step near the minimum changes the loss by less than its rounding.
        allowed_F = before_F + 1e-14 * before_F.abs()
        size_F = torch.ones_like(w_F)
        for _ in range(MAX_HALVINGS):
            after_F = self.value(w_F - size_F * step_w, b_F - size_F * step_b)
            worse_F = ~(after_F <= allowed_F)
            if not worse_F.any():
                break
            size_F = torch.where(worse_F, size_F / 2, size_F)
        return w_F - size_F * step_w, b_F - size_F * step_b

    def value(self, w_F: Tensor, b_F: Tensor) -> Tensor:
        fit_F = softplus(self._logits(w_F, b_F)).mean(dim=1) - w_F * self._yz_F - b_F * self._y
        return fit_F + self._ridge / 2 * w_F.square()

    def _logits(self, w_F: Tensor, b_F: Tensor) -> Tensor:
        return torch.addcmul(b_F[:, None], self._z_FE, w_F[:, None])


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return functional.softplus(x, threshold=40)  # the default, 20, is 2e-9 off


def standard(features_EF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation; 1 for a constant feature, whose standardized values are then 0."""
    mean_F = features_EF.mean(dim=0)
    deviation_F = features_EF.std(dim=0, correction=0)
    size_F = features_EF.abs().amax(dim=0)
    return mean_F, torch.where(deviation_F > CONSTANT * size_F, deviation_F, 1.0)


def cross_entropy(logits_E: Tensor, labels_E: Tensor) -> float:
    """Mean over examples, in nats."""
    return float((softplus(logits_E) - labels_E.double() * logits_E).mean())


def auc(scores_E: Tensor, labels_E: Tensor) -> float:
    """The chance that a positive example scores above a negative one; equal scores count half."""
    negatives = scores_E[~labels_E].sort().values
    positives = scores_E[labels_E]
    below = torch.searchsorted(negatives, positives)
    up_to = torch.searchsorted(negatives, positives, right=True)
    return float((below + up_to).double().sum() / (2 * len(positives) * len(negatives)))
