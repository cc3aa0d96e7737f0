"""Each format is read back as it was written; what it cannot hold is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import scaling
from scaling.errors import UserError
from scaling.interchange import openai, sae_lens, sparsify
from scaling.interchange.folds import (
    for_std_inputs,
    with_decoder_norms_in_latents,
    with_input_bias,
)
from scaling.interchange.model import LoadedAutoencoder
from scaling.interchange.portable import KINDS, Portable
from tests.portables import D, K, N, activations, by_equations, model_of, random_portable, worst

EXACT = 2e-6
"""float32 against float64, of a token's length."""
STD_EPS = 1e-5
"""What the 1e-5 beside the std of a token may do to it: their stds begin at about 1."""

NORMALIZATIONS = ("none", "unit_norm", "std", "constant_norm")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_inference_is_what_the_equations_say(kind: str, normalization: str) -> None:
    portable, x_BD = random_portable(kind, normalization), activations()
    model = model_of(portable)
    z_BN, recon_BD = by_equations(portable, x_BD)
    assert worst(model.latents(x_BD), z_BN) < EXACT
    assert worst(model.reconstruct(x_BD), recon_BD) < EXACT
    assert worst(model.decode(model.encode(x_BD)), recon_BD) < EXACT
    l0 = (z_BN > 0).sum(1).double().mean()
    assert (0 < l0 <= K) if kind == "topk" else (K < l0 < N)


def test_of_the_k_largest_only_those_above_0_are_active() -> None:
    portable, x_BD = random_portable("topk", "std"), activations()
    portable = portable.with_weights({"b_enc": portable.weights["b_enc"] - 2.5})
    z_BN, recon_BD = by_equations(portable, x_BD)
    assert (z_BN > 0).sum(1).min() < K
    model = model_of(portable)
    torch.testing.assert_close(model.latents(x_BD), z_BN.float(), rtol=1e-5, atol=1e-6)
    assert worst(model.reconstruct(x_BD), recon_BD) < EXACT


def test_it_takes_any_number_of_dimensions_and_no_other_width() -> None:
    model, x_BD = model_of(random_portable()), activations(12)
    x = x_BD.reshape(3, 4, D)
    assert torch.equal(model(x).reshape(12, D), model.reconstruct(x_BD))
    assert model.latents(x).shape == (3, 4, N)
    with pytest.raises(ValueError, match=r"\[tokens, 24\]"):
        model.encode(x_BD[:, :-1])


def written(
    write: Callable[[Portable, Path], None], portable: Portable, folder: Path
) -> LoadedAutoencoder:
    folder.mkdir()
    write(portable, folder)
    return scaling.load_autoencoder(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_sae_lens_and_back(tmp_path: Path, kind: str, normalization: str) -> None:
    portable, x_BD = random_portable(kind, normalization), activations()
    again = written(sae_lens.write, portable, tmp_path / "it")
    expected_BD = by_equations(portable, x_BD)[1]
    assert (again.facts.format, again.facts.kind, again.facts.k) == ("sae_lens", kind, portable.k)
    if normalization == "unit_norm":
        assert again.facts.normalization == "std"
        assert worst(again.reconstruct(x_BD), expected_BD) < STD_EPS
        assert torch.equal(again.w_dec, portable.weights["w_dec"])
    else:
        assert again.facts.normalization == normalization
        for name, tensor in portable.weights.items():
            assert torch.equal(getattr(again, name), tensor)


def test_sparsify_and_back(tmp_path: Path) -> None:
    portable = random_portable()
    again = written(sparsify.write, portable, tmp_path / "it")
    assert all(torch.equal(getattr(again, name), it) for name, it in portable.weights.items())
    assert (again.facts.format, again.facts.k, again.facts.normalization) == ("sparsify", K, "none")


def test_sparsify_says_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"normalization=unit_norm.*--normalized-inputs"):
        sparsify.write(random_portable("topk", "unit_norm"), tmp_path)
    with pytest.raises(UserError, match=r"TopK autoencoders alone.*this is relu"):
        sparsify.write(random_portable("relu"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    sparsify.write(random_portable("topk", "unit_norm"), tmp_path, normalized_inputs=True)
    assert scaling.load_autoencoder(tmp_path).facts.normalization == "unit_norm"


@pytest.mark.parametrize("normalization", ["std", "unit_norm"])
def test_openai_topk_and_back(tmp_path: Path, normalization: str) -> None:
    portable, x_BD = random_portable("topk", normalization), activations()
    again = written(openai.write, portable, tmp_path / "it")
    assert (again.facts.format, again.facts.k, again.facts.normalization) == ("openai", K, "std")
    within = STD_EPS if normalization == "unit_norm" else EXACT
    assert worst(again.reconstruct(x_BD), by_equations(portable, x_BD)[1]) < within
    file = scaling.load_autoencoder(tmp_path / "it" / "autoencoder.pt")
    assert torch.equal(file.reconstruct(x_BD), again.reconstruct(x_BD))


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_the_openai_layout_by_its_documented_equations(tmp_path: Path, kind: str) -> None:
    """Straight from the state dict: what anyone who follows the release computes of our file."""
    portable, x_BD = random_portable(kind, "unit_norm" if kind == "topk" else "none"), activations()
    model = written(openai.write, portable, tmp_path / "it")
    found = torch.load(tmp_path / "it" / "autoencoder.pt", weights_only=True)
    state = {name: it.double() for name, it in found.items() if isinstance(it, torch.Tensor)}
    x = x_BD.double()
    mu, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    if kind == "topk":
        x = (x - mu) / (std + 1e-5)
    latents = (x - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    if kind == "topk":
        top = latents.topk(found["activation_state_dict"]["k"])
        latents = torch.zeros_like(latents).scatter(-1, top.indices, top.values)
    recon = latents.relu() @ state["decoder.weight"].T + state["pre_bias"]
    if kind == "topk":
        recon = recon * std + mu
    assert worst(model.reconstruct(x_BD), recon) < EXACT
    assert worst(model_of(portable).reconstruct(x_BD), recon) < STD_EPS


def test_openai_relu_and_back(tmp_path: Path) -> None:
    portable = random_portable("relu")
    again = written(openai.write, portable, tmp_path / "it")
    assert (again.facts.kind, again.facts.k, again.facts.normalization) == ("relu", None, "none")
    assert all(torch.equal(getattr(again, name), it) for name, it in portable.weights.items())


@pytest.mark.parametrize(
    ("kind", "normalization", "says"),
    [
        ("topk", "none", "topk always goes with std there.*normalization=none"),
        ("relu", "unit_norm", "relu always goes with none there.*normalization=unit_norm"),
        ("jumprelu", "none", "TopK and ReLU autoencoders alone.*this is jumprelu"),
        ("gated", "std", "TopK and ReLU autoencoders alone.*this is gated"),
    ],
)
def test_openai_says_what_it_cannot_hold(
    tmp_path: Path, kind: str, normalization: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        openai.write(random_portable(kind, normalization), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_unit_norm_in_std_differs_by_its_epsilon_alone(kind: str) -> None:
    """Ten times the activations: a tenth of the error."""
    portable, x_BD = random_portable(kind, "unit_norm"), activations()
    folded = for_std_inputs(portable)
    errors = [
        worst(by_equations(folded, scale * x_BD)[1], by_equations(portable, scale * x_BD)[1])
        for scale in (1, 10)
    ]
    assert errors[0] < STD_EPS
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05)
    z_BN, larger_BN = by_equations(portable, 1e6 * x_BD)[0], by_equations(folded, 1e6 * x_BD)[0]
    assert worst(larger_BN, z_BN * math.sqrt(D - 1)) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_without_the_pre_bias_is_the_same_one(kind: str) -> None:
    """Given x instead of x - b_pre, with its own bias on the way out."""
    portable, x_BD = random_portable(kind), activations()
    weights = portable.weights
    without = portable.with_weights({"b_pre": torch.zeros(D)})
    expected_BN, recon_BD = by_equations(without, x_BD)
    folded = portable.with_weights(with_input_bias(weights))
    found_BN, found_BD = by_equations(folded, x_BD)
    assert worst(found_BN, expected_BN) < EXACT
    assert worst(found_BD, recon_BD + weights["b_pre"]) < EXACT


def test_decoder_norms_in_latents() -> None:
    portable, x_BD = random_portable(), activations()
    norm_N = torch.rand(N) + 0.5
    weights = portable.weights
    longer = portable.with_weights({"w_dec": weights["w_dec"] * norm_N[:, None]})
    scaled = portable.with_weights(
        {"w_enc": weights["w_enc"] * norm_N[:, None], "b_enc": weights["b_enc"] * norm_N}
    )
    folded = portable.with_weights(with_decoder_norms_in_latents(longer.weights))
    assert worst(by_equations(folded, x_BD)[0], by_equations(scaled, x_BD)[0]) < EXACT
    assert torch.allclose(folded.weights["w_dec"].norm(dim=1), torch.ones(N))
