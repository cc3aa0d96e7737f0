"""Ablation sparsity: its limits, and the same by hooks on the whole model, latent by latent."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
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
from tests.unit.evaluation.drawn import check_drawn, ratio_error
from tests.unit.evaluation.small import autoencoder, material_of, subject_of

SEED = torch.Generator().manual_seed(0)
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


def by_hooks(
    folder: Path, context: int, token: int, removed_D: Tensor, horizon: int = SMALL.horizon
) -> tuple[float, float]:
    """Sparsity and L2 by the formulas, in float64 over a whole model with a hook on its second
    block."""
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
    effect = (model(ids).logits - before)[0, token : token + horizon].detach()
    handle.remove()
    centred = []
    for row in effect:
        median = sorted(row.tolist())[(len(row) - 1) // 2]
        centred += [value - median for value in row.tolist()]
    l1, l2 = sum(map(abs, centred)), math.sqrt(sum(value**2 for value in centred))
    return (l1 / l2) ** 2 / len(centred), l2


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
        sparsity, l2 = by_hooks(folder, context, token, removed_D)
        assert rows["sparsity"][i] == pytest.approx(sparsity, rel=1e-3)
        assert rows["l2"][i] == pytest.approx(l2, rel=1e-3)
        other, _ = by_hooks(folder, context, token, removed_D * -2)
        assert other != pytest.approx(rows["sparsity"][i], rel=1e-3)  # effects are not linear
    mean = float(rows["sparsity"].astype(np.float64).mean())
    assert measured.numbers == {"ablation_sparsity": pytest.approx(mean, rel=1e-6)}
    of_tokens = defaultdict(list)
    for *token, sparsity in zip(rows["context"], rows["token"], rows["sparsity"], strict=True):
        of_tokens[tuple(token)].append(float(sparsity))
    assert len(of_tokens) < len(rows["token"])
    scatter = ratio_error([*map(sum, of_tokens.values())], [*map(len, of_tokens.values())])
    assert measured.standard_errors["ablation_sparsity"].value == pytest.approx(scatter, rel=1e-4)


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
    ours, theirs = (one.baselines["ablation_sparsity"] for one in (first, other))
    assert ours["channels"].value == theirs["channels"].value
    assert 0.1 < ours["random"].value < first.notes["random_at_token"] < 1
    check_drawn(first)


def test_baselines_are_what_hooks_on_the_whole_model_give(
    harvest_config: ConfigMaker, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels set to 0, and a vector less its part along a direction."""
    turned_DD = torch.linalg.qr(torch.randn(16, 16, generator=SEED)).Q
    directions = {"channels": torch.eye(16)[[2, 7]], "random": turned_DD[:2]}
    monkeypatch.setattr(ablation, "axes", lambda *what: directions)
    material = material_of(harvest_config(), tmp_path, IDS)
    found = Ablation().measure(subject_of(autoencoder(16), tmp_path), material, SMALL, silent)
    residual_CTD = torch.cat([batch.residual_CTD for batch in material.batches()]).double()
    sites = {(site.context, site.token) for site in ablation.sample_sites(material, SMALL)}
    for name, axes_AD in directions.items():
        plain: dict[str, list[float]] = {"sparsity": [], "l2": [], "at_token": []}
        for context, token in sorted(sites):
            x_D = residual_CTD[context, token]
            for axis_D in axes_AD.double():
                without_D = x_D - (x_D @ axis_D) * axis_D
                if name == "channels":
                    without_D = x_D.clone()
                    without_D[int(axis_D.argmax())] = 0
                removed = (llama_folder, context, token, x_D - without_D)
                sparsity, l2 = by_hooks(*removed)
                plain["sparsity"].append(sparsity)
                plain["l2"].append(l2)
                plain["at_token"].append(by_hooks(*removed, horizon=1)[0])
        assert found.notes[f"n_{name}"] == len(plain["l2"]) == 2 * len(sites)
        sparsity = found.baselines["ablation_sparsity"][name]
        assert sparsity.value == pytest.approx(np.mean(plain.pop("sparsity")), rel=1e-3)
        for what, values in plain.items():
            assert found.notes[f"{name}_{what}"] == pytest.approx(np.mean(values), rel=1e-3)


def test_sites_are_kept_and_have_the_whole_horizon(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    material = material_of(harvest_config(), tmp_path, IDS)
    sites = ablation.sample_sites(material, Options(tokens=40, horizon=6))
    assert {site.token for site in sites} == {1, 2}  # of 8, the first is no vector
    assert {site.ids_1T.shape[1] - site.token for site in sites} == {6}
    assert {site.context for site in sites} == set(range(5))


def test_a_silent_autoencoder_has_no_sparsity(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    sae = autoencoder(16)
    sae.b_enc -= 1e6
    found = Ablation().measure(
        subject_of(sae, tmp_path), material_of(harvest_config(), tmp_path, IDS), SMALL, silent
    )
    assert found.numbers == {"ablation_sparsity": None}
    assert found.notes["undefined"] == {"ablation_sparsity": "no latent is active at these tokens"}


def test_a_last_token_where_no_latent_is_active_leaves_differences_their_errors(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    material, contributions = material_of(harvest_config(), tmp_path, IDS), ablation._contributions
    last = len(ablation.sample_sites(material, SMALL)) - 1

    def quiet_at_last(run: Any, site: Any, options: Options, number: int) -> Any:
        found = contributions(run, site, options, number)
        return tuple(part[:0] for part in found) if number == last else found

    monkeypatch.setattr(ablation, "_contributions", quiet_at_last)
    found = Ablation().measure(subject_of(autoencoder(16), tmp_path), material, SMALL, silent)
    for baseline in found.baselines["ablation_sparsity"].values():
        assert baseline.standard_error is not None


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
