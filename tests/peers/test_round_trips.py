"""Our folders in the real libraries, theirs here: the same reconstructions, to 1e-5 of a token's
length. Prints the largest error of each folder (pytest -s)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import scaling
from scaling.interchange import sae_lens, sparsify
from scaling.interchange.folds import for_std_inputs
from scaling.interchange.normalization import normalized
from scaling.interchange.portable import KINDS
from tests.peers.conftest import Ask
from tests.portables import D, activations, model_of, random_portable, worst

pytestmark = pytest.mark.peers

TOLERANCE = 1e-5
SAE_LENS_VARIANTS = 11
SPARSIFY_VARIANTS = 2


def errors(
    root: Path, expected: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, tuple[float, float]]:
    """Of each folder (reconstruction, latents), against the library's."""
    found = {}
    for name, (recon_BD, latents_BN) in expected.items():
        theirs = load_file(root / name / "theirs.safetensors")
        found[name] = (worst(theirs["recon"], recon_BD), worst(theirs["latents"], latents_BN))
        print(
            f"{root.name}/{name}: reconstruction {found[name][0]:.1e}, latents {found[name][1]:.1e}"
        )
    return found


def loaded(root: Path, x_BD: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What is computed here of every folder in `root`."""
    models = {path.name: scaling.load_autoencoder(path) for path in sorted(root.iterdir())}
    return {name: (it.reconstruct(x_BD), it.latents(x_BD)) for name, it in models.items()}


def test_sae_lens_both_ways(tmp_path: Path, ask: Ask) -> None:
    x_BD, expected = activations(), {}
    save_file({"x": x_BD}, tmp_path / "x.safetensors")
    for kind in KINDS:
        for normalization in ("none", "std", "unit_norm", "constant_norm"):
            portable = random_portable(kind, normalization)
            folder = tmp_path / "ours" / f"{kind}_{normalization}"
            folder.mkdir(parents=True)
            sae_lens.write(portable, folder)
            # Latents of unit_norm are larger there: see for_std_inputs.
            there = for_std_inputs(portable) if normalization == "unit_norm" else portable
            latents_BN = model_of(there).latents(x_BD)
            expected[folder.name] = (model_of(portable).reconstruct(x_BD), latents_BN)
    print(ask("sae_lens", tmp_path))
    ours = errors(tmp_path / "ours", expected)
    theirs = errors(tmp_path / "theirs", loaded(tmp_path / "theirs", x_BD))
    assert (len(ours), len(theirs)) == (16, SAE_LENS_VARIANTS)
    for name, pair in {**ours, **theirs}.items():
        assert max(pair) < TOLERANCE, name


def test_sparsify_both_ways(tmp_path: Path, ask: Ask) -> None:
    x_BD, expected = activations(), {}
    save_file({"x": x_BD}, tmp_path / "x.safetensors")
    portable = random_portable("topk", "none")
    (tmp_path / "ours" / "topk").mkdir(parents=True)
    sparsify.write(portable, tmp_path / "ours" / "topk")
    model = model_of(portable)
    expected["topk"] = (model.reconstruct(x_BD), model.latents(x_BD))
    print(ask("sparsify", tmp_path))
    ours = errors(tmp_path / "ours", expected)
    theirs = errors(tmp_path / "theirs", loaded(tmp_path / "theirs", x_BD))
    assert (len(ours), len(theirs)) == (1, SPARSIFY_VARIANTS)
    for name, pair in {**ours, **theirs}.items():
        assert max(pair) < TOLERANCE, name


@pytest.mark.parametrize("normalization", ["unit_norm", "std"])
def test_sparsify_given_normalized_activations(
    tmp_path: Path, ask: Ask, normalization: str
) -> None:
    portable = random_portable("topk", normalization)
    x_BD, scale = normalized(activations(), normalization)
    assert scale is not None
    save_file({"x": x_BD}, tmp_path / "x.safetensors")
    folder = tmp_path / "ours" / "topk"
    folder.mkdir(parents=True)
    sparsify.write(portable, folder, normalized_inputs=True)
    ask("sparsify", tmp_path)
    theirs_BD = load_file(folder / "theirs.safetensors")["recon"]
    raw_BD = theirs_BD * scale.factor_B1 + scale.mean_B1
    assert worst(raw_BD, model_of(portable).reconstruct(activations())) < TOLERANCE
    # Our reader knows from cfg.json what raw activations must go through first.
    (folder / "theirs.safetensors").unlink()
    again = scaling.load_autoencoder(folder)
    assert torch.equal(
        again.reconstruct(activations()), model_of(portable).reconstruct(activations())
    )
    assert again.facts.d_model == D
