"""K-SVD finds a planted dictionary, and each update is the plain one and lowers the error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from scaling.evaluation import ksvd
from scaling.evaluation.ksvd import KSVD, Options, learn, updated
from scaling.evaluation.omp import Options as GapOptions
from scaling.evaluation.omp import SparseCoding
from scaling.evaluation.pursuit import omp
from scaling.evaluation.sampled import kept_vectors, squared_errors
from tests.portables import D, N, random_portable
from tests.unit.evaluation.drawn import check_drawn, ratio_error
from tests.unit.evaluation.test_pursuit import plain_omp
from tests.unit.evaluation.vectors_material import random_vectors, subject, untold

K = 2


def planted(n_vectors: int = 1500) -> tuple[Tensor, Tensor]:
    """Vectors of two rows each of a dictionary of 20 in 16 dimensions, and the dictionary."""
    generator = torch.Generator().manual_seed(0)
    rows_ND = torch.nn.functional.normalize(torch.randn(20, 16, generator=generator), dim=1)
    ids_BK = torch.stack([torch.randperm(20, generator=generator)[:K] for _ in range(n_vectors)])
    values_BK = torch.randn(n_vectors, K, generator=generator)
    return (values_BK.unsqueeze(2) * rows_ND[ids_BK]).sum(dim=1), rows_ND


def test_a_planted_dictionary_is_found() -> None:
    x_BD, rows_ND = planted()
    first, later = learn(x_BD, 20, K, 1), learn(x_BD, 20, K, 15)
    assert later.mse_of_iterations[0] == first.mse_of_iterations[0]
    assert later.mse_of_iterations[-1] < 0.5 * later.mse_of_iterations[0]
    nearest_N = (rows_ND @ later.rows_ND.T).abs().max(dim=1).values
    assert float((nearest_N > 0.98).float().mean()) >= 0.8


def test_an_update_is_the_plain_one() -> None:
    x_BD, _ = planted(80)
    rows_ND = torch.nn.functional.normalize(x_BD[:12], dim=1)
    coded = omp(x_BD, rows_ND, torch.full((80,), K))
    ids_BK, values_BK = coded.ids_BK, coded.values_BK.clone()
    values_BK[ids_BK == 3] = 0  # so that row 3 has no user
    found_ND = updated(x_BD, rows_ND, ids_BK, values_BK)
    codes_BN = torch.zeros(80, 12).scatter_add_(1, ids_BK, values_BK).double()
    plain_ND = rows_ND.double().clone()
    worst = int((x_BD - codes_BN.float() @ rows_ND).square().sum(dim=1).argmax())
    for row in range(12):
        users_U = codes_BN[:, row] != 0
        if not users_U.any():
            assert row == 3
            assert torch.allclose(found_ND[3], x_BD[worst] / x_BD[worst].norm(), atol=1e-6)
            continue
        others_BN = codes_BN.clone()
        others_BN[:, row] = 0
        left_UD = (x_BD.double() - others_BN @ plain_ND)[users_U]
        row_D = codes_BN[users_U, row] @ left_UD
        plain_ND[row] = row_D / row_D.norm()
        codes_BN[users_U, row] = left_UD @ plain_ND[row]
        assert torch.allclose(found_ND[row].double(), plain_ND[row], atol=1e-4)
    before = float(squared_errors(x_BD, rows_ND, ids_BK, values_BK).sum())
    assert float((x_BD - codes_BN @ plain_ND).square().sum()) < before


def test_the_gap_and_where_it_is_undefined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, vectors = subject(random_portable("topk", "none"), tmp_path), random_vectors(D)
    too_few = KSVD().measure(run, vectors, Options(vectors=4 * N - 1), untold)  # type: ignore[arg-type]
    assert too_few.numbers == {"ksvd_gap": None}
    assert f"ksvd.vectors={4 * N}" in too_few.notes["undefined"]["ksvd_gap"]
    training_BD = random_vectors(D, n_contexts=60).residual_CTD.flatten(0, 1)
    monkeypatch.setattr(ksvd, "_training", lambda material, n: training_BD)
    measured = KSVD().measure(run, vectors, Options(iterations=2), untold)  # type: ignore[arg-type]
    gap = measured.numbers["ksvd_gap"]
    assert gap is not None
    assert gap > 1
    assert gap == pytest.approx(
        measured.notes["normalized_mse"] / measured.notes["normalized_mse_ksvd"]
    )
    learned = learn(training_BD, N, measured.notes["k"], 2)
    x_RD = kept_vectors(vectors)  # type: ignore[arg-type]
    centered_BD = training_BD - learned.mean_D
    counts_B = torch.full((len(training_BD),), measured.notes["k"])
    after = omp(centered_BD, learned.rows_ND, counts_B).errors_B.sum() / centered_BD.square().sum()
    first, last = measured.notes["normalized_mse_in_training"]
    assert 0.5 * last < after < last < first < 1
    left = [
        plain_omp(x_D - learned.mean_D, learned.rows_ND, measured.notes["k"])[1] for x_D in x_RD
    ]
    own = (x_RD - run.autoencoder.reconstruct(x_RD)).square().sum(dim=1).tolist()
    assert gap == pytest.approx(sum(own) / sum(left), rel=1e-2)
    error = measured.standard_errors["ksvd_gap"].value
    assert error == pytest.approx(ratio_error(own, left), rel=1e-2)
    check_drawn(measured)
    monkeypatch.setattr(ksvd, "learn", None)  # a second run of that size learns nothing again
    assert KSVD().measure(run, vectors, Options(iterations=2), untold).numbers == measured.numbers  # type: ignore[arg-type]


def test_rounding_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ReLU of more active latents than dimensions: with as many rows any coder is perfect."""
    run, vectors = subject(random_portable("relu", "none"), tmp_path), random_vectors(D)
    training_BD = random_vectors(D, n_contexts=60).residual_CTD.flatten(0, 1)
    monkeypatch.setattr(ksvd, "_training", lambda material, n: training_BD)
    measured = KSVD().measure(run, vectors, Options(iterations=1), untold)  # type: ignore[arg-type]
    assert measured.notes["k"] > D
    assert measured.numbers == {"ksvd_gap": None}
    assert measured.notes["undefined"] == {"ksvd_gap": "K-SVD leaves no error"}
    full = replace(random_portable("topk", "none"), k=D + 4)
    gaps = SparseCoding().measure(subject(full, tmp_path), vectors, GapOptions(), untold)  # type: ignore[arg-type]
    assert gaps.numbers["omp_gap"] is None
    assert gaps.notes["undefined"]["omp_gap"] == "the coder leaves no error"


def test_no_store_no_training_vectors(tmp_path: Path) -> None:
    request = SimpleNamespace(store=lambda layer: tmp_path / "gone", layer=1)
    assert not len(ksvd._training(SimpleNamespace(request=request), 10))  # type: ignore[arg-type]
