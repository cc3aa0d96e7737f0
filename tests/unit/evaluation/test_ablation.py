"""Ablation sparsity: its limits, and the same by hooks on the whole model, latent by latent."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from scaling.activations.split_subject import SplitSubject
from scaling.activations.subject import find_blocks
from scaling.config import ModelDtype
from scaling.errors import UserError
from scaling.evaluation import ablation
from scaling.evaluation.ablation import FILE, Ablation, Options
from scaling.evaluation.ablation_effects import effect_sparsity
from tests.unit.activations.conftest import ConfigMaker
from tests.unit.evaluation.small import autoencoder, material_of, subject_of

IDS = torch.randint(1, 61, (5, 8), generator=torch.Generator().manual_seed(0))
SMALL = Options(tokens=5, latents=8, horizon=3, baselines=3)


def silent(done: int, total: int) -> None:
    del done, total


def test_one_logit_is_one_of_all_and_gaussian_effects_two_over_pi() -> None:
    one = torch.full((1, 4, 50), 7.0)  # all else moves by a constant
    one[0, 2, 17] = 3.0
    assert float(effect_sparsity(one)[0]) == pytest.approx(1 / (4 * 50), abs=1e-12)
    gaussian = torch.randn(3, 16, 20_000, generator=torch.Generator().manual_seed(0))
    shifted = gaussian + torch.randn(3, 16, 1, generator=torch.Generator().manual_seed(1)) * 9
    for sparsity in effect_sparsity(shifted)[0].tolist():
        assert sparsity == pytest.approx(2 / math.pi, abs=2e-3)
    assert effect_sparsity(torch.zeros(1, 2, 5))[0].isnan().all()


@functools.cache
def whole_model(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def by_hooks(folder: Path, context: int, token: int, removed_D: Tensor) -> float:
    """The formula in float64 over a whole model with a hook on its second block."""
    model = whole_model(folder)
    block = find_blocks(model)[1]

    def take_away(module: object, inputs: object, output: Tensor | tuple[Tensor]) -> object:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.clone()
        hidden[0, token] -= removed_D
        return (hidden,) if isinstance(output, tuple) else hidden

    ids = IDS[context : context + 1]
    before = model(ids).logits
    handle = block.register_forward_hook(take_away)
    effect = (model(ids).logits - before)[0, token : token + SMALL.horizon].detach()
    handle.remove()
    centred = []
    for row in effect:
        median = sorted(row.tolist())[(len(row) - 1) // 2]
        centred += [value - median for value in row.tolist()]
    l1, l2 = sum(map(abs, centred)), math.sqrt(sum(value**2 for value in centred))
    return (l1 / l2) ** 2 / len(centred)


@pytest.mark.parametrize("model", ["llama_folder", "gpt2_folder"])
def test_it_is_what_hooks_on_the_whole_model_give(
    request: pytest.FixtureRequest, harvest_config: ConfigMaker, tmp_path: Path, model: str
) -> None:
    folder: Path = request.getfixturevalue(model)
    material = material_of(harvest_config(model=str(folder)), tmp_path, IDS)
    sae = autoencoder(16)
    measured = Ablation().measure(subject_of(sae, tmp_path), material, SMALL, silent)
    rows = np.load(tmp_path / FILE)
    residual_CTD = torch.cat([batch.residual_CTD for batch in material.batches()])
    assert len(rows["latent"]) == measured.notes["n_ablations"] == 5 * 4
    for i in range(0, len(rows["latent"]), 3):
        context, token, latent = (int(rows[name][i]) for name in ("context", "token", "latent"))
        x_D = residual_CTD[context, token].double()
        length = (x_D - x_D.mean()).norm()
        removed_D = float(rows["value"][i]) * sae.w_dec[latent].double() * length
        assert rows["sparsity"][i] == pytest.approx(
            by_hooks(folder, context, token, removed_D), rel=1e-3
        )
        half = by_hooks(folder, context, token, removed_D * -2)
        assert half != pytest.approx(rows["sparsity"][i], rel=1e-3)  # effects are not linear
    mean = float(rows["sparsity"].astype(np.float64).mean())
    assert measured.numbers == {"ablation_sparsity": pytest.approx(mean, rel=1e-6)}


def test_the_same_again_and_the_same_tokens_for_other_runs(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    material = material_of(harvest_config(), tmp_path, IDS)
    few = Options(tokens=5, latents=2, horizon=3, baselines=3)
    found = []
    for number, sae in enumerate([autoencoder(16), autoencoder(16), autoencoder(16, 60, 7)]):
        subject = subject_of(sae, tmp_path / str(number))
        measured = Ablation().measure(subject, material, few, silent)
        found.append((measured, dict(np.load(subject.folder / FILE))))
    (first, rows), (again, _), (other, other_rows) = found
    assert first == again
    assert first.numbers != other.numbers
    assert np.array_equal(rows["token"], other_rows["token"])
    assert (np.unique(rows["context"], return_counts=True)[1] == few.latents).all()
    assert first.notes["channels_sparsity"] == other.notes["channels_sparsity"]
    assert 0.1 < first.notes["random_sparsity"] < first.notes["random_at_token"] < 1


@pytest.mark.parametrize(
    ("harvested", "evaluated"),
    [("float32", None), ("bfloat16", None), ("float32", "bfloat16"), ("bfloat16", "float32")],
)
def test_logits_are_float32_whatever_else_is(
    harvest_config: ConfigMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harvested: str,
    evaluated: str | None,
) -> None:
    config = harvest_config(model_dtype=ModelDtype(harvested))
    material = material_of(config, tmp_path, IDS, dtype=evaluated)
    asked, changes = [], ablation.logit_changes

    def seen(subject: SplitSubject, *what: Any) -> Any:
        asked.append(subject.unembedding().dtype)
        return changes(subject, *what)

    monkeypatch.setattr(ablation, "logit_changes", seen)
    Ablation().measure(subject_of(autoencoder(16), tmp_path), material, SMALL, silent)
    assert set(asked) == {torch.float32}
    assert str(material.subject.unembedding().dtype) == f"torch.{evaluated or harvested}"


def test_what_cannot_be_is_refused(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    material = material_of(harvest_config(), tmp_path, IDS)
    with pytest.raises(UserError, match="horizon=9: no token of these contexts of 8 tokens"):
        Ablation().measure(
            subject_of(autoencoder(16), tmp_path), material, Options(horizon=9), silent
        )
    with pytest.raises(UserError, match=r"ablation\.tokens=0 must be at least 1"):
        Ablation().settings(Options(tokens=0))
    Ablation().settings(Options(seed=0))
