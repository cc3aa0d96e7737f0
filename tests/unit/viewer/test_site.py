"""A site's numbers are those of the run, by the slow way; what cannot be shown is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM

from scaling import evaluate, run_weights, view
from scaling.activations.readout import tried
from scaling.activations.split_subject import SplitSubject
from scaling.evaluate_material import material_of
from scaling.runs.store import RunFolder
from scaling.storage.atomic import read_json
from scaling.view import _options
from tests.unit.viewer import pages

EXAMPLES = 3


@pytest.fixture
def site(finished: RunFolder) -> Path:
    assert view.main([str(finished.path), "--examples", str(EXAMPLES)]) == 0
    return finished.path / "viewer"


def plainly(finished: RunFolder) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The run's autoencoder, token ids [C, T], and every latent at every token, [C, T, N]: 0 where
    no autoencoder is for the token."""
    autoencoder = run_weights.load_run(finished)
    material = material_of(run_weights.plan_of(finished), _options([]))
    parts = []
    for batch in material.batches():
        latents_CTN = autoencoder.latents(batch.residual_CTD.float())
        parts.append(latents_CTN * batch.kept_CT[..., None])
    return autoencoder, material.ids_CT, torch.cat(parts)


def test_numbers_are_those_of_the_run(finished: RunFolder, site: Path) -> None:
    autoencoder, ids_CT, latents_CTN = plainly(finished)
    about, columns, shown = pages.about(site), pages.columns(site), pages.latents(site)
    flat_EN = latents_CTN.flatten(0, 1)
    active_N = (flat_EN > 0).sum(0)
    assert about["n_tokens"] == ids_CT.numel() - len(ids_CT)  # first positions are left out
    record = about["run"]["record"][0]
    assert record["on"] == "all 128 held-out tokens of the store"
    assert record["numbers"]["normalized_mse"] == finished.read_record().result["normalized_mse"]
    np.testing.assert_array_equal(columns["active"], active_N)
    np.testing.assert_allclose(columns["density"], active_N / about["n_tokens"], rtol=1e-6)
    np.testing.assert_allclose(columns["largest"], flat_EN.amax(0), rtol=1e-6)
    np.testing.assert_allclose(columns["mean"], flat_EN.sum(0) / active_N.clamp_min(1), rtol=1e-5)
    assert len(shown) == 300
    assert [sum(latent["histogram"]) for latent in shown] == active_N.tolist()
    latent = int(active_N.argmax())
    values = flat_EN[:, latent][flat_EN[:, latent] > 0]
    counts, _ = np.histogram(values, bins=24, range=(0, float(values.max())))
    assert shown[latent]["histogram"] == counts.tolist()
    unit_ND = normalize(autoencoder.w_dec)
    expected = unit_ND @ unit_ND[latent]
    expected[latent] = -2
    ids, cosines = zip(*shown[latent]["neighbours"], strict=True)
    assert list(ids) == expected.topk(12).indices.tolist()
    np.testing.assert_allclose(cosines, expected.topk(12).values, rtol=1e-3)


def test_examples_are_the_contexts_with_the_largest_activations(
    finished: RunFolder, site: Path
) -> None:
    _, ids_CT, latents_CTN = plainly(finished)
    (contexts,) = pages.called_with(site / "data" / "contexts.js")
    np.testing.assert_array_equal(pages.unpacked(contexts["ids"]), ids_CT.flatten())
    peaks_CN = latents_CTN.amax(1)
    for latent, shown in enumerate(pages.latents(site)):
        peaks_C = peaks_CN[:, latent]
        n_active = int((peaks_C > 0).sum())
        assert len(shown["top"]) == min(EXAMPLES, n_active)
        assert len(shown["random"]) == min(EXAMPLES, n_active - len(shown["top"]))
        tops = [max(values) for _, _, values in shown["top"]]
        np.testing.assert_allclose(tops, peaks_C.topk(len(tops)).values, rtol=1e-3)
        numbers = [context for context, *_ in shown["top"] + shown["random"]]
        assert len(set(numbers)) == len(numbers)
        for context, positions, values in shown["top"] + shown["random"]:
            row_T = torch.zeros(ids_CT.shape[1])
            row_T[positions] = torch.tensor(values)
            torch.testing.assert_close(row_T, latents_CTN[context, :, latent], rtol=1e-3, atol=0)


def test_logit_effects_are_the_models_own(
    finished: RunFolder, site: Path, llama_folder: Path
) -> None:
    """A step along the decoder row, from a residual stream of the median length, through the
    model's own norm and head; the part along that vector, which changes its length, by itself."""
    autoencoder, _, _ = plainly(finished)
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    about = pages.about(site)
    x_D = about["length"] * torch.tensor([1.0, -1.0]).repeat(8)
    for latent, shown in enumerate(pages.latents(site)[:20]):
        along_D = x_D * (autoencoder.w_dec[latent] @ x_D) / (x_D @ x_D)
        step_D = 0.01 * about["length"] * (autoencoder.w_dec[latent] - along_D)
        with torch.no_grad():
            moved_D = model.model.norm(x_D + step_D) - model.model.norm(x_D)
            moved_D = moved_D / (0.01 * about["length"]) + along_D / about["length"]
            effect_V = about["factor"] * model.lm_head(moved_D)
        effect_V -= effect_V.mean()
        for kind, sign in (("promoted", 1), ("suppressed", -1)):
            _, effects = zip(*shown[kind], strict=True)
            expected = sign * (sign * effect_V).topk(10).values
            np.testing.assert_allclose(effects, expected, rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize(("folder", "centers"), [("llama_folder", False), ("gpt2_folder", True)])
def test_a_final_norm_is_found_and_tried(
    folder: str, centers: bool, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(folder)
    subject = SplitSubject(path, layer=2, dtype="bfloat16", device="cpu")
    readout = subject.readout()
    assert readout.has_norm
    assert readout.centers is centers
    torch.testing.assert_close(readout.gain_D, torch.ones(16), rtol=1e-4, atol=0)
    norm = torch.nn.LayerNorm(7) if centers else torch.nn.RMSNorm(7)
    torch.nn.init.normal_(norm.weight)
    found, gain_D = tried(norm, 7)  # of odd length, where no vector of ones has mean 0
    assert found is centers
    torch.testing.assert_close(gain_D, norm.weight.detach(), rtol=1e-4, atol=0)


def test_what_evaluations_kept_is_shown(finished: RunFolder) -> None:
    kept = finished.path / "evaluation"
    kept.mkdir()
    frequency = np.linspace(0, 1, 300, dtype=np.float32)
    layout = np.stack([frequency, -frequency], axis=1)
    np.savez(kept / "density.npz", frequency=frequency, importance=frequency * 2, layout=layout)
    np.savez(
        kept / "ablation.npz", latent=[7, 7, 9], sparsity=[0.1, 0.3, np.nan], l2=[1.0, 2.0, 4.0]
    )
    pattern = {"tokens": [3, None, 5], "value": 1.5, "examples": 2}
    entry = {"patterns": [pattern], "precision": 0.5, "recall": None}
    (kept / "n2g.json").write_text(json.dumps({"7": entry}))
    numbers = {"downstream_kl": 0.25, "density_l0": 4.0}
    names = {"ablation": [], "explain": [], "downstream": ["downstream_kl"]}
    metrics = {name: {"columns": of, "weights": "raw"} for name, of in names.items()}
    metrics["density"] = {"columns": ["density_l0"], "weights": "averaged"}
    finished.evaluation_path.write_text(json.dumps({**numbers, "metrics": metrics}))
    assert view.main([str(finished.path)]) == 0
    assert "frequency" not in pages.columns(finished.path / "viewer")  # of other weights
    metrics["density"]["weights"] = "raw"
    finished.evaluation_path.write_text(json.dumps({**numbers, "metrics": metrics}))
    assert view.main([str(finished.path)]) == 0
    site = finished.path / "viewer"
    columns = pages.columns(site)
    np.testing.assert_array_equal(columns["frequency"], frequency)
    assert columns["ablation_sparsity"][7] == pytest.approx(0.2)
    assert np.isnan(columns["ablation_sparsity"][9])
    assert columns["ablation_l2"][9] == 4.0
    assert columns["n2g_precision"][7] == 0.5
    assert np.isnan(columns["n2g_recall"]).all()
    assert pages.latents(site)[7]["patterns"] == [pattern]
    np.testing.assert_array_equal(pages.unpacked(pages.about(site)["y"]), -frequency)
    groups = [one["numbers"] for one in pages.about(site)["run"]["evaluation"]]
    assert groups == [{"downstream_kl": 0.25}, {"density_l0": 4.0}]
    made_s = (site / "made.json").stat().st_mtime_ns
    assert view.main([str(finished.path)]) == 0
    assert (site / "made.json").stat().st_mtime_ns == made_s  # the same: not made again
    np.savez(kept / "density.npz", frequency=frequency[:9])
    assert view.main([str(finished.path)]) == 2  # of another run


def test_numbers_say_how_much_text_they_are_of(finished: RunFolder) -> None:
    keys = ["metrics=density,downstream,explain", "contexts=3", "explain.contexts=5"]
    assert evaluate.main([str(finished.path), *keys, "dtype=bfloat16"]) == 0
    assert view.main([str(finished.path)]) == 0
    about = pages.about(finished.path / "viewer")
    on = {one["metric"]: one["on"] for one in about["run"]["evaluation"]}
    other = "dtype=bfloat16 (these pages: float32)"
    assert on["density"] == on["downstream"] == f"21 tokens of 3 contexts, {other}"
    explain = read_json(finished.evaluation_path)["metrics"]["explain"]
    [shown] = [one for one in about["run"]["evaluation"] if one["metric"] == "explain"]
    assert shown["errors"] == {
        name: one["value"] for name, one in explain["standard_errors"].items()
    }
    assert shown["errors"]["explanation_ce"] > 0
    assert set(shown["baselines"]["explanation_ce"]) == {"bigrams", "latents"}
    assert on["explain"] == f"14 tested tokens of 5 contexts, {other}"
    columns = {one["key"]: one for one in about["columns"]}
    assert columns["density"]["on"] == f"{about['n_contexts']} contexts"
    assert columns["n2g_recall"]["on"] == "5 contexts"
    assert columns["frequency"]["on"] == "3 contexts"
    assert f"Measured on 21 tokens of 3 contexts, {other}." in columns["frequency"]["about"]


def test_refusals_name_the_remedy(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        assert view.main([str(finished.path), *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "is no site of ours: name another folder" in refused("--out", tmp_path)
    assert "contexts=0 must be at least 1" in refused("contexts=0")
    assert "metrics=density is of evaluations" in refused("metrics=density")
    plan = finished.read_plan()
    del plan["source"]["description"]["layer"]
    finished.plan_path.write_text(json.dumps(plan))
    assert "of no language model" in refused()
