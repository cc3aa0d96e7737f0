"""Sparse coders against plain restatements, one vector at a time in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.evaluation.omp import Options, SparseCoding, budgets
from scaling.evaluation.pursuit import gradient_pursuit, omp
from scaling.evaluation.refine import Options as RefinementOptions
from scaling.evaluation.refine import Refinement, refined, refined_sample
from scaling.evaluation.sampled import kept_vectors, sample, some_vectors, squared_errors
from scaling.interchange.normalization import normalized
from tests.portables import D, K, N, model_of, random_portable
from tests.unit.evaluation.vectors_material import random_vectors, subject, untold

SEED = torch.Generator().manual_seed(0)
ROWS_ND = torch.randn(60, 20, generator=SEED) * torch.logspace(-1, 1, 60)[:, None]
X_BD = torch.randn(30, 20, generator=SEED)
COUNTS_B = torch.arange(30) % 7


def plain_omp(x_D: Tensor, rows_ND: Tensor, k: int) -> tuple[list[int], float]:
    x_D, unit_ND = x_D.double(), torch.nn.functional.normalize(rows_ND.double(), dim=1)
    chosen: list[int] = []
    residual_D = x_D
    for _ in range(k):
        score_N = (unit_ND @ residual_D).abs()
        score_N[chosen] = -1
        chosen.append(int(score_N.argmax()))
        rows_SD = unit_ND[chosen]
        z_S = torch.linalg.lstsq(rows_SD.T, x_D[:, None]).solution[:, 0]
        residual_D = x_D - z_S @ rows_SD
    return chosen, float(residual_D.square().sum())


def test_omp_is_the_plain_one() -> None:
    found = omp(X_BD, ROWS_ND, COUNTS_B)
    plain = [plain_omp(x, ROWS_ND, int(k)) for x, k in zip(X_BD, COUNTS_B, strict=True)]
    for row, (ids, _) in enumerate(plain):
        assert found.ids_BK[row, : len(ids)].tolist() == ids
        assert not found.values_BK[row, len(ids) :].any()
    assert found.errors_B.tolist() == pytest.approx([error for _, error in plain], rel=1e-5)
    made = squared_errors(X_BD, ROWS_ND, found.ids_BK, found.values_BK)
    assert made.tolist() == pytest.approx(
        found.errors_B.tolist(), rel=1e-4
    )  # values are of the rows as given


def test_squared_errors_of_many_vectors_are_those_of_each() -> None:
    x_RD, ids_RK = X_BD.repeat(20, 1), torch.arange(600)[:, None] % 60
    values_RK = torch.randn(600, 1, generator=SEED)
    expected = (x_RD - values_RK * ROWS_ND[ids_RK[:, 0]]).double().square().sum(dim=1)
    assert torch.allclose(squared_errors(x_RD, ROWS_ND, ids_RK, values_RK), expected, rtol=1e-4)


def test_a_row_given_twice_and_rows_of_zeros_do_no_harm() -> None:
    rows_ND = torch.cat([torch.eye(3), torch.eye(3), torch.zeros(2, 3)])
    counts_B = torch.full((10,), 8)
    for code in (omp, gradient_pursuit):
        found = code(torch.randn(10, 3, generator=SEED), rows_ND, counts_B)
        assert found.values_BK.isfinite().all()
        assert found.errors_B.sum() < 1e-9
    with pytest.raises(ValueError, match="9 rows of 8"):
        omp(torch.ones(1, 3), rows_ND, torch.tensor([9]))


def test_gradient_pursuit_is_the_plain_one() -> None:
    unit_ND = torch.nn.functional.normalize(ROWS_ND.double(), dim=1)
    for positive in (False, True):
        found = gradient_pursuit(X_BD, ROWS_ND, COUNTS_B, positive=positive)
        assert not positive or bool((found.values_BK >= 0).all())
        for x_D, k, ids_K in zip(X_BD.double(), COUNTS_B.tolist(), found.ids_BK, strict=True):
            z_N, residual_D = torch.zeros(60).double(), x_D
            taken = torch.zeros(60, dtype=torch.bool)
            for step in range(k):
                score_N = unit_ND @ residual_D if positive else (unit_ND @ residual_D).abs()
                score_N[taken] = -torch.inf
                taken[score_N.argmax()] = True
                assert int(score_N.argmax()) == ids_K[step]
                g_N = (unit_ND @ residual_D) * taken
                if positive:
                    g_N = g_N * ((z_N > 0) | (g_N > 0))
                z_N = z_N + g_N * g_N.square().sum() / (g_N @ unit_ND).square().sum()
                z_N = z_N.clamp_min(0) if positive else z_N
                residual_D = x_D - z_N @ unit_ND


def test_refined_magnitudes_are_the_best_of_their_set() -> None:
    """They meet the conditions of the minimum: no slope where positive, none upward at 0."""
    ids_BK = torch.stack([torch.randperm(60, generator=SEED)[:6] for _ in X_BD])
    start_BK = torch.rand(30, 6, generator=SEED)
    z_BK = refined(X_BD, ROWS_ND, ids_BK, start_BK, COUNTS_B.clamp_max(6))
    rows_BKD = torch.nn.functional.normalize(ROWS_ND, dim=1)[ids_BK]
    made_BD = torch.einsum("bk,bkd->bd", z_BK, ROWS_ND[ids_BK])
    slope_BK = torch.einsum("bkd,bd->bk", rows_BKD, X_BD - made_BD)
    inside_BK = torch.arange(6) < COUNTS_B.clamp_max(6)[:, None]
    assert bool((z_BK >= 0).all())
    assert not z_BK[~inside_BK].any()
    assert float(slope_BK[inside_BK & (z_BK > 0)].abs().max()) < 1e-3
    assert float(slope_BK[inside_BK & (z_BK == 0)].max()) < 1e-3


@pytest.mark.parametrize("kind", ["topk", "relu", "jumprelu"])
def test_no_encoder_beats_omp(kind: str, tmp_path: Path) -> None:
    portable = random_portable(kind, "unit_norm")
    if kind == "relu":  # fewer active latents than dimensions, else nothing is left of any vector
        portable = portable.with_weights({"b_enc": portable.weights["b_enc"] - 0.3})
    run, material = subject(portable, tmp_path), random_vectors(D)
    found = sample(run.autoencoder, kept_vectors(material))  # type: ignore[arg-type]
    counts_R = budgets(found, run.autoencoder.facts.k)
    own = found.errors(run.autoencoder.w_dec).sum()
    assert omp(found.target_RD, run.autoencoder.w_dec, counts_R).errors_B.sum() <= own
    measured = SparseCoding().measure(run, material, Options(vectors=50), untold)  # type: ignore[arg-type]
    assert all(gap is not None and gap > 1 for gap in measured.numbers.values())
    none = SparseCoding().measure(run, material, Options(max_active=1), untold)  # type: ignore[arg-type]
    assert none.numbers["omp_gap"] is None
    assert none.notes["n_left_out"] == 84


def test_a_sample_is_what_the_autoencoder_makes() -> None:
    """Its error is that of the reconstruction in the space of the input, and counts are L0."""
    vectors = random_vectors(D)
    x_RD = kept_vectors(vectors)  # type: ignore[arg-type]
    assert len(x_RD) == 12 * 7
    assert len(some_vectors(vectors, 20)) == 20  # type: ignore[arg-type]
    for kind in ("topk", "relu", "gated"):
        autoencoder = model_of(random_portable(kind, "std"))
        found = sample(autoencoder, x_RD, chunk=32)
        (input_RD, scale), latents_RN = normalized(x_RD, "std"), autoencoder.latents(x_RD)
        assert scale is not None
        recon_RD = (autoencoder.reconstruct(x_RD) - scale.mean_B1) / scale.factor_B1
        error = float((input_RD - recon_RD).square().sum())
        assert float(found.errors(autoencoder.w_dec).sum()) == pytest.approx(error, rel=1e-4)
        assert torch.equal(found.chosen.counts_R, (latents_RN > 0).sum(dim=1))


def test_shrunken_magnitudes_are_found_and_sound_ones_left(tmp_path: Path) -> None:
    """Orthogonal rows: an encoder that reads them back exactly has nothing to refine, one whose
    bias takes a constant off has just that."""
    base = random_portable("relu", "none")
    rows_ND = torch.eye(N, D) + torch.eye(N, D).roll(D, 0)  # each direction by at most two latents
    rows_ND[D:] = 0
    exact = {"w_enc": rows_ND, "w_dec": rows_ND, "b_enc": torch.zeros(N), "b_pre": torch.zeros(D)}
    vectors = random_vectors(D)
    vectors.residual_CTD = vectors.residual_CTD.abs() + 1
    shifts = []
    for bias in (0.0, -0.5):
        run = subject(base.with_weights({**exact, "b_enc": torch.full((N,), bias)}), tmp_path)
        measured = Refinement().measure(run, vectors, RefinementOptions(), untold)  # type: ignore[arg-type]
        found = sample(run.autoencoder, kept_vectors(vectors))  # type: ignore[arg-type]
        taken_off = -bias * float(found.chosen.counts_R.sum())
        expected = taken_off / float(found.chosen.values_RK.sum())
        assert measured.numbers["refinement_shift"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        shifts.append(measured.numbers["refinement_shift"])
        best_RK = refined_sample(found, run.autoencoder.w_dec)
        assert best_RK.sum() == pytest.approx(float(kept_vectors(vectors).sum()), rel=1e-4)  # type: ignore[arg-type]
    assert shifts[0] < 1e-6 < shifts[1]
    assert K < D


def test_magnitudes_of_nothing_are_not_shifted(tmp_path: Path) -> None:
    silent = random_portable("relu", "none").with_weights({"b_enc": torch.full((N,), -1e6)})
    run = subject(silent, tmp_path)
    measured = Refinement().measure(run, random_vectors(D), RefinementOptions(), untold)  # type: ignore[arg-type]
    assert measured.numbers == {"refinement_shift": None, "refinement_gain": pytest.approx(1.0)}
    assert measured.notes["undefined"] == {"refinement_shift": "no latent is active"}
    assert set(measured.standard_errors) == {"refinement_gain"}


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(UserError, match=r"omp\.vectors=0 must be at least 1"):
        SparseCoding().settings(Options(vectors=0))


def test_vectors_that_do_not_differ_are_refused(tmp_path: Path) -> None:
    run, vectors = subject(random_portable(), tmp_path), random_vectors(D)
    for metric, options in (
        (SparseCoding(), Options(vectors=1)),
        (Refinement(), RefinementOptions(vectors=1)),
    ):
        with pytest.raises(UserError, match="1 held-out vectors that do not differ"):
            metric.measure(run, vectors, options, untold)  # type: ignore[arg-type]
