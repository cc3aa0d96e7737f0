"""Other numbers of active latents: at its own k an autoencoder is what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaling.evaluation import progressive
from scaling.evaluation.progressive import Options, Progressive, levels_of, recovered
from scaling.evaluation.sampled import kept_vectors
from scaling.interchange.normalization import normalized
from scaling.interchange.portable import Portable
from tests.portables import D, K, N, by_equations, model_of, random_portable
from tests.unit.evaluation.drawn import check_drawn, ratio_error
from tests.unit.evaluation.vectors_material import random_vectors, subject, untold


def test_levels() -> None:
    assert levels_of(5, N) == [1, 2, 4, 5, 8, 10, 16, 20]
    assert levels_of(32, 64) == [1, 2, 4, 8, 16, 32, 64]
    assert levels_of(1, 8) == [1, 2, 4]


@pytest.mark.parametrize("normalization", ["none", "unit_norm"])
def test_at_its_own_k_it_is_the_run_itself(normalization: str) -> None:
    portable = random_portable("topk", normalization)
    x_RD = kept_vectors(random_vectors(D))  # type: ignore[arg-type]
    input_RD, scale = normalized(x_RD, normalization)
    recon_RD = by_equations(portable, x_RD)[1]
    if scale is not None:
        recon_RD = (recon_RD - scale.mean_B1) / scale.factor_B1
    error = float((input_RD - recon_RD).square().sum())
    total = float((input_RD - input_RD.mean(dim=0)).square().sum())
    (point,) = recovered(model_of(portable), x_RD, [K], untold).points
    assert point["normalized_mse"] == pytest.approx(error / total, rel=1e-5)
    (other,) = recovered(model_of(portable), x_RD, [K + 1], untold).points
    assert other["normalized_mse"] != pytest.approx(error / total, rel=1e-3)


def test_a_threshold_leaves_as_many_on_average_and_is_the_plain_one() -> None:
    portable, x_RD = random_portable("topk", "unit_norm"), kept_vectors(random_vectors(D))  # type: ignore[arg-type]
    model = model_of(portable)
    input_RD = normalized(x_RD, "unit_norm")[0]
    pre_RN = model.pre_acts(input_RD).relu()
    active_R = (pre_RN > 0).sum(dim=1)
    for point in recovered(model, x_RD, [2, 5, int(active_R.double().mean())], untold).points:
        assert point["threshold_l0"] == pytest.approx(point["k"], abs=1 / len(x_RD))
        assert point["l0"] == float(active_R.clamp_max(int(point["k"])).double().mean())
        kept_RN = pre_RN * (pre_RN > point["threshold"])
        error_RD = input_RD - kept_RN @ model.w_dec - model.b_pre
        total = (input_RD - input_RD.mean(dim=0)).square().sum()
        plain = float(error_RD.square().sum() / total)
        assert point["threshold_normalized_mse"] == pytest.approx(plain, rel=1e-4)
    assert point["l0"] < point["k"] - 0.1  # some vectors have fewer active latents


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(random_portable("topk", "unit_norm"))
    x_RD = kept_vectors(random_vectors(D))  # type: ignore[arg-type]
    whole = recovered(model, x_RD, [2, 5], untold)
    monkeypatch.setattr(progressive, "CHUNK", len(x_RD) // 3)
    parts = recovered(model, x_RD, [2, 5], untold)
    assert torch.allclose(parts.errors_2LR, whole.errors_2LR, rtol=1e-4)
    assert parts.points[1] == pytest.approx(whole.points[1], rel=1e-4)


def plain_errors(portable: Portable, x_RD: Tensor) -> tuple[list[float], list[float]]:
    """Squared errors of the k largest, and of the pre-activations above the one that leaves k of
    each vector on average, float64."""
    assert portable.k is not None
    w = {name: tensor.double() for name, tensor in portable.weights.items()}
    centered_RD = x_RD.double() - w["b_pre"]
    pre_RN = (centered_RD @ w["w_enc"].T + w["b_enc"]).clamp_min(0)
    least = pre_RN.flatten().sort(descending=True).values[portable.k * len(x_RD) - 1]
    above_RN = torch.where(pre_RN >= least, pre_RN, 0)
    of_largest_RD = x_RD - by_equations(portable, x_RD)[1]
    errors = (of_largest_RD, centered_RD - above_RN @ w["w_dec"])
    of_largest, of_threshold = (one.square().sum(dim=1).tolist() for one in errors)
    return of_largest, of_threshold


def test_columns_are_those_of_autoencoders_of_another_k(tmp_path: Path) -> None:
    portable, vectors = random_portable("topk", "none"), random_vectors(D)
    x_RD = kept_vectors(vectors)  # type: ignore[arg-type]
    measured = Progressive().measure(subject(portable, tmp_path), vectors, Options(), untold)  # type: ignore[arg-type]
    own, above = plain_errors(portable, x_RD)
    other = {
        name: plain_errors(replace(portable, k=k), x_RD)[0]
        for name, k in (("half", K // 2), ("double", 2 * K), ("quadruple", 4 * K))
    }
    of_columns = {f"progressive_{n}": e for n, e in {**other, "threshold": above}.items()}
    expected = {name: sum(errors) / sum(own) for name, errors in of_columns.items()}
    scatter = {name: ratio_error(errors, own) for name, errors in of_columns.items()}
    found = {name: error.value for name, error in measured.standard_errors.items()}
    assert found == pytest.approx(scatter, rel=1e-3)
    check_drawn(measured)
    assert measured.numbers == pytest.approx(expected, rel=1e-4)
    assert len({round(ratio, 2) for ratio in expected.values()}) == 4


def test_there_is_no_half_of_one_latent(tmp_path: Path) -> None:
    run = subject(replace(random_portable(), k=1), tmp_path)
    measured = Progressive().measure(run, random_vectors(D), Options(), untold)  # type: ignore[arg-type]
    assert measured.numbers["progressive_half"] is None
    assert list(measured.notes["undefined"]) == ["progressive_half"]
    assert measured.numbers["progressive_double"] is not None


def test_where_sparsity_is_an_outcome_all_that_is_active_is_the_run_itself(tmp_path: Path) -> None:
    portable, vectors = random_portable("jumprelu", "std"), random_vectors(D)
    x_RD = kept_vectors(vectors)  # type: ignore[arg-type]
    latents_RN = model_of(portable).latents(x_RD)
    most = int((latents_RN > 0).sum(dim=1).max())
    points = recovered(model_of(portable), x_RD, [most, N], untold).points
    assert points[0]["l0"] == points[1]["l0"] == float((latents_RN > 0).sum()) / len(x_RD)
    assert points[0]["normalized_mse"] == points[1]["normalized_mse"]
    measured = Progressive().measure(subject(portable, tmp_path), vectors, Options(), untold)  # type: ignore[arg-type]
    k = measured.notes["k"]
    assert k == round(float((latents_RN > 0).sum()) / len(x_RD))
    assert [point["k"] for point in measured.notes["curve"]] == levels_of(k, N)
    dead = portable.with_weights({"threshold": torch.full((N,), 1e9)})
    nothing = Progressive().measure(subject(dead, tmp_path), vectors, Options(), untold)  # type: ignore[arg-type]
    assert set(nothing.numbers) == set(measured.numbers)
    assert set(nothing.numbers.values()) == {None}
