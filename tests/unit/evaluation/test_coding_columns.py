"""The columns of refinement and omp from their definitions: vector by vector, in float64, with
scipy's non-negative least squares, and from weights alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import nnls

from scaling.evaluation.omp import Options as PursuitOptions
from scaling.evaluation.omp import SparseCoding
from scaling.evaluation.refine import Options, Refinement
from scaling.evaluation.sampled import kept_vectors
from scaling.interchange.portable import Portable
from tests.portables import D, K, by_equations, random_portable
from tests.unit.evaluation.drawn import check_drawn, ratio_error
from tests.unit.evaluation.vectors_material import random_vectors, subject, untold

Floats = NDArray[np.float64]


class Plain:
    """Vectors as a decoder has to make them, and what the encoder says; centered per token where
    the normalization is unit_norm."""

    def __init__(self, portable: Portable) -> None:
        x_RD = kept_vectors(random_vectors(D)).double()  # type: ignore[arg-type]
        self.latents_RN: Floats = by_equations(portable, x_RD)[0].numpy()
        self.input_RD: Floats = x_RD.numpy()
        if portable.normalization == "unit_norm":
            centered_RD = self.input_RD - self.input_RD.mean(axis=1, keepdims=True)
            self.input_RD = centered_RD / np.linalg.norm(centered_RD, axis=1, keepdims=True)
        self.rows_ND: Floats = portable.weights["w_dec"].double().numpy()
        self.target_RD = self.input_RD - portable.weights["b_pre"].double().numpy()
        self.total = float(((self.input_RD - self.input_RD.mean(axis=0)) ** 2).sum())
        left_RD = self.target_RD - self.latents_RN @ self.rows_ND
        self.errors = (left_RD**2).sum(axis=1).tolist()
        self.error = sum(self.errors)
        self.counts = [int((z_N > 0).sum()) for z_N in self.latents_RN]

    def refined(self, row: int, chosen: list[int]) -> tuple[Floats, float]:
        """The best magnitudes >= 0 of these latents, and the squared error that they leave."""
        if not chosen:
            return np.zeros(0), float((self.target_RD[row] ** 2).sum())
        z, distance = nnls(self.rows_ND[chosen].T, self.target_RD[row])
        return z, float(distance**2)

    def greedy(self, row: int, k: int, coder: str) -> float:
        """The squared error of k rows found one after another; rows here are of norm 1."""
        x_D, chosen, z = self.target_RD[row], [], np.zeros(0)
        residual_D = x_D
        for _ in range(k):
            score_N = self.rows_ND @ residual_D
            score_N = score_N if coder == "positive" else np.abs(score_N)
            chosen.append(
                int(np.argmax([-np.inf if i in chosen else s for i, s in enumerate(score_N)]))
            )
            rows_SD, z = self.rows_ND[chosen], np.append(z, 0.0)
            if coder == "omp":
                z = np.linalg.lstsq(rows_SD.T, x_D, rcond=None)[0]
            else:
                g = rows_SD @ residual_D
                g = np.where((z > 0) | (g > 0), g, 0) if coder == "positive" else g
                z = z + g * (g @ g) / ((g @ rows_SD) @ (g @ rows_SD))
                z = z.clip(0) if coder == "positive" else z
            residual_D = x_D - z @ rows_SD
        return (
            self.refined(row, chosen)[1] if coder == "positive" else float(residual_D @ residual_D)
        )


@pytest.mark.parametrize(
    ("kind", "normalization"),
    [("topk", "none"), ("topk", "unit_norm"), ("relu", "unit_norm"), ("gated", "unit_norm")],
)
def test_refinement_is_that_of_non_negative_least_squares(
    kind: str, normalization: str, tmp_path: Path
) -> None:
    base = random_portable(kind, normalization)
    # Of more active latents than dimensions the best magnitudes are not unique.
    fewer = {} if kind == "topk" else {"b_enc": base.weights["b_enc"] - 0.3}
    portable = base.with_weights(fewer)
    plain = Plain(portable)
    assert max(plain.counts) < D
    run = subject(portable, tmp_path)
    measured = Refinement().measure(run, random_vectors(D), Options(), untold)  # type: ignore[arg-type]
    moved, after, n_zero = [], [], 0
    for row, z_N in enumerate(plain.latents_RN):
        chosen = np.flatnonzero(z_N > 0).tolist()
        best, error = plain.refined(row, chosen)
        moved.append(float(best.sum() - z_N[chosen].sum()))
        after.append(error)
        n_zero += int((best == 0).sum())
    shift = sum(moved) / float(plain.latents_RN.sum())
    assert measured.numbers["refinement_shift"] == pytest.approx(shift, rel=1e-2, abs=1e-4)
    assert measured.numbers["refinement_gain"] == pytest.approx(sum(after) / plain.error, rel=1e-3)
    assert measured.notes["normalized_mse"] == pytest.approx(plain.error / plain.total, rel=1e-4)
    check_drawn(measured)
    sums = plain.latents_RN.sum(axis=1).tolist()
    expected = ratio_error(moved, sums), ratio_error(after, plain.errors)
    errors = [measured.standard_errors[column].value for column in measured.numbers]
    assert errors == pytest.approx(expected, rel=1e-2)
    assert measured.notes["set_to_zero"] == pytest.approx(n_zero / sum(plain.counts), abs=0.01)


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_gaps_are_those_of_plain_coders(kind: str, tmp_path: Path) -> None:
    """With k of a TopK also where fewer of its latents are above 0, else as many as there are."""
    portable = random_portable(kind, "unit_norm")
    if kind == "topk":
        portable = portable.with_weights({"b_enc": portable.weights["b_enc"] - 0.4})
    plain = Plain(portable)
    budgets = [K] * len(plain.counts) if kind == "topk" else plain.counts
    assert min(plain.counts) < max(budgets)
    run = subject(portable, tmp_path)
    options = PursuitOptions(max_active=max(budgets))
    measured = SparseCoding().measure(run, random_vectors(D), options, untold)  # type: ignore[arg-type]
    for column, coder in (("", "omp"), ("_positive", "positive"), ("_pursuit", "pursuit")):
        errors = [plain.greedy(row, k, coder) for row, k in enumerate(budgets)]
        error = sum(errors)
        scatter = ratio_error(plain.errors, errors)
        assert measured.standard_errors[f"omp_gap{column}"].value == pytest.approx(scatter, rel=0.1)
        assert measured.numbers[f"omp_gap{column}"] == pytest.approx(plain.error / error, rel=1e-2)
        note = measured.notes[f"omp_gap{column}"]
        assert note["normalized_mse"] == pytest.approx(error / plain.total, rel=1e-2)
    check_drawn(measured)
    assert measured.notes["k"] == pytest.approx(np.mean(budgets))
    assert len({round(gap or 0, 2) for gap in measured.numbers.values()}) > 1


def test_vectors_left_out_keep_the_places_of_the_others(tmp_path: Path) -> None:
    """Other runs leave out others, as many perhaps: what is compared is of the same ones."""
    portable = random_portable("jumprelu", "unit_norm")
    counts = np.array(Plain(portable).counts)
    options = PursuitOptions(max_active=int(np.median(counts)))
    left_out = counts > options.max_active
    n_used = int((~left_out).sum())
    assert 2 < n_used < len(counts)
    run = subject(portable, tmp_path)
    measured = SparseCoding().measure(run, random_vectors(D), options, untold)  # type: ignore[arg-type]
    assert measured.notes["n_left_out"] == len(counts) - n_used
    assert set(measured.draws) == set(measured.numbers)
    for column, moved in measured.draws.items():
        assert np.array_equal(moved == 0, left_out)
        error = np.sqrt((moved**2).sum() * n_used / (n_used - 1))
        assert measured.standard_errors[column].value == pytest.approx(error)
