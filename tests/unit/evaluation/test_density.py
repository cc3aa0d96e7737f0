"""Density against a plain count over a dense table of latents; position and dead by definition."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scaling.errors import UserError
from scaling.evaluation import clusters
from scaling.evaluation.density import Density, Options, position_bits
from scaling.evaluation.density_sums import summed
from scaling.evaluation.sampled import kept_vectors
from scaling.interchange.normalization import normalized
from scaling.runs.record import Record, Status
from tests.portables import D, N, model_of, random_portable
from tests.unit.evaluation.vectors_material import random_vectors, subject, untold


def run_folder(tmp_path: Path, dead_after: int | None) -> Path:
    """`evaluation` within a run's."""
    record = Record("run", "s", Status.done, result={"dead_after_tokens": dead_after})
    (tmp_path / "record.json").write_text(json.dumps(record.to_json()))
    return tmp_path / "evaluation"


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_every_number_is_the_plain_one(kind: str, tmp_path: Path) -> None:
    run = subject(random_portable(kind, "unit_norm"), run_folder(tmp_path, 3))
    vectors = random_vectors(D)
    measured = Density().measure(run, vectors, Options(dense=0.2), untold)  # type: ignore[arg-type]
    x_RD = kept_vectors(vectors)  # type: ignore[arg-type]
    input_RD = normalized(x_RD, "unit_norm")[0].double()
    z_RN, w_ND = run.autoencoder.latents(x_RD).double(), run.autoencoder.w_dec.double()
    error_RD = input_RD - z_RN @ w_ND - run.autoencoder.b_pre
    rise_N = (
        torch.stack(
            [
                ((error_RD + z_RN[:, i : i + 1] * w_ND[i]).square() - error_RD.square()).sum()
                for i in range(N)
            ]
        )
        / (input_RD - input_RD.mean(dim=0)).square().sum()
    )
    on_RN = z_RN > 0
    frequency_N = on_RN.double().mean(dim=0)
    silent_at_the_end_N = ~on_RN[-3:].any(dim=0)
    expected = {
        "density_l0": float(on_RN.sum(dim=1).double().mean()),
        "density_silent": float((frequency_N == 0).double().mean()),
        "density_dead": float(silent_at_the_end_N.double().mean()),
        "density_dense": float((frequency_N > 0.2).double().mean()),
        "density_median": float(frequency_N[frequency_N > 0].quantile(0.5)),
        "density_importance": float(rise_N.max() / rise_N.clamp_min(0).sum()),
    }
    found = {name: measured.numbers[name] for name in expected}
    assert found == pytest.approx(expected, rel=1e-4)
    assert measured.numbers["density_silent"] != measured.numbers["density_dead"]
    file = np.load(run.folder / "density.npz")
    assert file["frequency"] == pytest.approx(frequency_N.numpy(), rel=1e-6)
    assert file["importance"] == pytest.approx(rise_N.numpy(), rel=1e-3, abs=1e-7)
    assert file["largest"] == pytest.approx(z_RN.max(dim=0).values.numpy(), rel=1e-5)
    assert file["mean"] * file["frequency"] == pytest.approx(z_RN.mean(dim=0).numpy(), rel=1e-5)
    assert file["histogram"].sum(axis=1).tolist() == on_RN.sum(dim=0).tolist()
    assert file["by_position"].sum(axis=1).tolist() == on_RN.sum(dim=0).tolist()
    assert file["kept"].tolist() == [0] + [12] * 7
    in_bin = np.histogram(z_RN[:, 5][on_RN[:, 5]], file["edges"])[0]  # rows have norm 1
    assert file["histogram"][5].tolist() == in_bin.tolist()


def test_dead_is_undefined_where_the_window_is_longer_than_the_text(tmp_path: Path) -> None:
    for window in (10_000_000, None):
        run = subject(random_portable(), run_folder(tmp_path, window))
        measured = Density().measure(run, random_vectors(D), Options(), untold)  # type: ignore[arg-type]
        assert measured.numbers["density_dead"] is None
        assert measured.numbers["density_position"] is None  # nothing fires a hundred times


def test_without_text_there_is_no_position(tmp_path: Path) -> None:
    run, vectors = (
        subject(random_portable("relu"), run_folder(tmp_path, None)),
        random_vectors(D, 60),
    )
    found = []
    for vectors.has_text in (True, False):
        measured = Density().measure(run, vectors, Options(), untold)  # type: ignore[arg-type]
        found.append(measured.numbers["density_position"])
    assert found[0] is not None
    assert found[1] is None
    assert "no text" in measured.notes["undefined"]["density_position"]


def test_the_share_of_latents_that_know_their_position_is_the_plain_one(tmp_path: Path) -> None:
    """Of 7 kept positions, each a range of its own; firings counted by hand."""
    vectors = random_vectors(D, 60)
    direction_D = torch.randn(D, generator=torch.Generator().manual_seed(1))
    vectors.residual_CTD[:, 5:] += 300 * direction_D
    run = subject(random_portable("relu", "unit_norm"), run_folder(tmp_path, None))
    measured = Density().measure(run, vectors, Options(), untold)  # type: ignore[arg-type]
    on_CTN = run.autoencoder.latents(vectors.residual_CTD)[:, 1:] > 0
    often, knowing = 0, 0
    for on_CT in on_CTN.permute(2, 0, 1):
        if int(on_CT.sum()) < 100:
            continue
        often += 1
        first, second = on_CT[:30].sum(dim=0).tolist(), on_CT[30:].sum(dim=0).tolist()
        bits = 0.0
        for f, other in ((first, second), (second, first)):
            for n, m in zip(f, other, strict=True):
                share = (m + 1 / 7) / (sum(other) + 1)
                bits += n / max(1, sum(f)) * math.log2(share * 7) / 2
        knowing += bits > 0.1
    assert 0 < knowing < often
    assert measured.numbers["density_position"] == pytest.approx(knowing / often)


def test_position_bits() -> None:
    """A latent that fires in the first quarter alone tells two bits; one that fires anywhere, one
    that never does, and one whose bursts are elsewhere in each half, none."""
    kept_T = torch.full((16,), 1000)
    by_position_N2T = torch.zeros(4, 2, 16, dtype=torch.int32)
    by_position_N2T[0, :, :4], by_position_N2T[1] = 2500, 100
    by_position_N2T[3, 0, 2], by_position_N2T[3, 1, 9] = 50, 50
    bits_N = position_bits(by_position_N2T, kept_T)
    assert bits_N.tolist() == pytest.approx([2, 0, 0, 0], abs=1e-3)
    alike_N2T = by_position_N2T.clone()
    alike_N2T[3, 1] = alike_N2T[3, 0]
    assert float(position_bits(alike_N2T, kept_T)[3]) > 2.5
    uneven_T = kept_T.clone()
    uneven_T[:2] = 10
    assert float(position_bits(by_position_N2T, uneven_T)[1]) > 0.01  # of all vectors


def test_batches_change_nothing() -> None:
    autoencoder, vectors = model_of(random_portable("relu", "std")), random_vectors(D)
    once = summed(autoencoder, vectors, untold)  # type: ignore[arg-type]
    vectors.residual_CTD, vectors.kept_CT = vectors.residual_CTD[:1], vectors.kept_CT[:1]
    first = summed(autoencoder, vectors, untold)  # type: ignore[arg-type]
    assert (once.n_vectors, first.n_vectors) == (84, 7)
    assert bool((first.count_N <= once.count_N).all())
    assert int(once.last_N.max()) > 80  # numbered through all batches
    halves_2 = once.by_position_N2T.sum(dim=(0, 2)).tolist()
    latents_RN = autoencoder.latents(kept_vectors(random_vectors(D)))  # type: ignore[arg-type]
    assert halves_2 == [int((part > 0).sum()) for part in latents_RN.split(42)]


def test_layouts() -> None:
    """Two bundles of directions are two clusters along the first axis; unknown ones are refused."""
    generator = torch.Generator().manual_seed(0)
    noise_ND = 0.1 * torch.randn(40, 12, generator=generator)
    side_N = torch.arange(40) % 2
    rows_ND = torch.eye(12)[side_N] + noise_ND
    rows_ND[7] = 0
    points_N2 = clusters.layout(rows_ND * 3, "pca")
    is_row_N = torch.arange(40) != 7
    first_N = points_N2[:, 0]
    assert bool(points_N2.isfinite().all())
    lower, upper = first_N[is_row_N & (side_N == 0)], first_N[is_row_N & (side_N == 1)]
    assert float(lower.max()) < float(upper.min()) or float(upper.max()) < float(lower.min())
    assert torch.equal(points_N2, clusters.layout(rows_ND * 3, "pca"))
    with pytest.raises(UserError, match="pca or umap"):
        clusters.check("tsne")


def test_umap_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*\[map\]"):
        clusters.require_package("umap")
