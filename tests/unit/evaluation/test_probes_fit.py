"""Probes against a plain solver, and at the limits: separable, constant, equal scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import root
from torch import Tensor

from scaling.evaluation.probes_fit import RIDGE, auc, cross_entropy, fit_each
from scaling.evaluation.probes_linear import FOLDS, RIDGES, fit_all, fit_with_chosen_ridge

N = 120


@pytest.fixture
def labels() -> Tensor:
    return torch.rand(N, generator=torch.Generator().manual_seed(1)) < 0.4


@pytest.fixture
def features(labels: Tensor) -> Tensor:
    """From noise to nearly separable, of sizes from 1e-3 to 1e3, far from zero."""
    noise = torch.randn(N, 6, generator=torch.Generator().manual_seed(2))
    told = labels[:, None] * torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
    return (noise + told) * torch.logspace(-3, 3, 6) + 5


def slow_loss(a: np.ndarray, z: np.ndarray, y: np.ndarray, ridge: float) -> float:
    logits = z @ a[:-1] + a[-1]
    total = sum(np.logaddexp(0, x) - t * x for x, t in zip(logits, y, strict=True))
    return total / len(y) + ridge / 2 * (a[:-1] ** 2).sum()


def slow_gradient(a: np.ndarray, z: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    error = 1 / (1 + np.exp(-(z @ a[:-1] + a[-1]))) - y
    of_weights = [float((error * z[:, f]).mean()) + ridge * a[f] for f in range(z.shape[1])]
    return np.array([*of_weights, float(error.mean())])


def slow_fit(z: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    found = root(slow_gradient, np.zeros(z.shape[1] + 1), (z, y, ridge), tol=1e-13)
    assert np.abs(slow_gradient(found.x, z, y, ridge)).max() < 1e-12
    return found.x


def standardized(features: Tensor) -> np.ndarray:
    x = features.double().numpy()
    return (x - x.mean(axis=0)) / x.std(axis=0)


def test_each_probe_is_the_minimum(features: Tensor, labels: Tensor) -> None:
    probes, z, y = fit_each(features, labels), standardized(features), labels.double().numpy()
    for f in range(features.shape[1]):
        w, b = slow_fit(z[:, [f]], y, RIDGE)
        assert probes.weight_F[f].item() == pytest.approx(w, abs=1e-6)
        assert probes.bias_F[f].item() == pytest.approx(b, abs=1e-6)
        loss = slow_loss(np.array([w, b]), z[:, [f]], y, 0.0)
        assert probes.loss_F[f].item() == pytest.approx(loss, abs=1e-6)
        logits = probes.logits(f, features[:, f])
        assert cross_entropy(logits, labels) == pytest.approx(loss, abs=1e-6)
    other = fit_each(features, labels, ridge=10 * RIDGE)
    assert not torch.allclose(other.weight_F[-1], probes.weight_F[-1], rtol=1e-2)


def test_a_latent_that_is_the_label_is_found(labels: Tensor) -> None:
    features = torch.stack([labels.float() * 3 - 7, torch.full((N,), 4.0), torch.zeros(N)], dim=1)
    probes = fit_each(features, labels)
    assert probes.loss_F[0] < 0.01
    share = labels.double().mean()
    entropy = -(share * share.log() + (1 - share) * (1 - share).log())
    assert torch.allclose(probes.loss_F[1:], entropy.expand(2))  # a constant tells the share alone
    assert all(part.isfinite().all() for part in probes)


def test_blocks_of_features_change_nothing(labels: Tensor) -> None:
    wide = torch.randn(N, 600, generator=torch.Generator().manual_seed(3))
    whole, some = fit_each(wide, labels), fit_each(wide[:, 250:260], labels)
    assert torch.allclose(whole.weight_F[250:260], some.weight_F, atol=1e-9)


def test_auc_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(4)
    scores = torch.randint(0, 6, (60,), generator=generator).double()
    labels = torch.rand(60, generator=generator) < 0.5
    pairs = [float(p > n) + float(p == n) / 2 for p in scores[labels] for n in scores[~labels]]
    assert auc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(labels.double(), labels) == 1.0
    assert auc(torch.zeros(60), labels) == 0.5


def test_the_linear_probe_is_the_minimum(features: Tensor, labels: Tensor) -> None:
    _, linear, _ = fit_all(features, labels, [0.01, 0.1, 1.0])
    expected = slow_fit(standardized(features), labels.double().numpy(), 0.1)
    found = np.append(linear.weight_F.numpy(), linear.bias)
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_ridge_of_a_wide_probe_is_chosen_on_other_documents() -> None:
    """More channels than examples, one of them tells a little: least ridge would fit the noise."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(80) % 2 == 0
    features = torch.randn(80, 200, generator=generator)
    features[:, 0] += labels.float()
    chosen = fit_with_chosen_ridge(features, labels, [n // 2 for n in range(80)])
    assert chosen.ridge > 1e-3
    assert chosen.logits(features).isfinite().all()


def test_the_ridge_is_that_which_does_best_on_documents_not_fitted() -> None:
    """By a loop over folds; fitted to the fold and judged on the rest, other ridges would win."""

    def best(x: Tensor, y: Tensor, folds: list[int], *, turned_over: bool) -> float:
        totals = dict.fromkeys(RIDGES, 0.0)
        for fold in range(FOLDS):
            out = torch.tensor([(number == fold) != turned_over for number in folds])
            for ridge in RIDGES:
                (probe,) = fit_all(x[~out], y[~out], [ridge])
                pairs = zip(probe.logits(x[out]).tolist(), y[out].tolist(), strict=True)
                totals[ridge] += sum(np.logaddexp(0, z) - t * z for z, t in pairs)
        return min(RIDGES, key=lambda ridge: totals[ridge])

    chosen, wanted, wrong = [], [], []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        documents = [place // 2 for place in range(60)]
        folds = [document % FOLDS for document in documents]
        y = torch.rand(60, generator=generator) < 0.5
        x = torch.randn(60, 8, generator=generator) + 0.6 * y[:, None]
        chosen.append(fit_with_chosen_ridge(x, y, documents).ridge)
        wanted.append(best(x, y, folds, turned_over=False))
        wrong.append(best(x, y, folds, turned_over=True))
    assert chosen == wanted
    assert wanted != wrong
