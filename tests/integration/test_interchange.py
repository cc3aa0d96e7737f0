"""A run of each architecture, out in each format and in again, scores as its record says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import scaling
from scaling import export
from scaling.activations.build import open_source
from scaling.autoencoder.registry import ARCHITECTURES
from scaling.interchange import hub
from scaling.interchange.model import LoadedAutoencoder
from scaling.plan import RunPlan
from scaling.runs.record import Status
from scaling.runs.store import RunFolder
from scaling.train import shard_files
from tests.integration import end_phase
from tests.integration.test_resume import planned

FORMATS = {
    "native": set(ARCHITECTURES),
    "sae_lens": set(ARCHITECTURES),
    "sparsify": {"topk", "multi_topk", "matryoshka"},
    "openai": {"relu"},
}
"""Which architectures each format holds, of activations that are not normalized."""


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    short = ["train.tokens=2_048", f"autoencoder={request.param}"]
    _, folder = planned(tmp_path_factory.mktemp("done"), *short)
    assert end_phase.take_up(folder)["status"] is Status.done
    return folder


def scored(model: LoadedAutoencoder, plan: RunPlan) -> float:
    source = open_source(plan.source)
    x_BD = torch.cat(list(source.eval_batches(512)))
    error = (x_BD - model.reconstruct(x_BD)).square().sum()
    return float(error / (x_BD - source.calibration.mean_D).square().sum())


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_it_scores_as_recorded(
    tmp_path: Path,
    done: RunFolder,
    name: str,
    averaged: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_files, "_BLOCK_BYTES", 1_000)  # some rows at a time
    plan = RunPlan.from_json(done.read_plan())
    out = tmp_path / "out"
    options = ["--averaged"] if averaged else []
    code = export.main([str(done.path), "--out", str(out), "--format", name, *options])
    if plan.autoencoder.name not in FORMATS[name]:
        assert code == 2
        assert f"--format {name}" in capsys.readouterr().err
        assert not out.exists()
        return
    assert code == 0
    model = scaling.load_autoencoder(out)
    result = done.read_record().result
    recorded = result["normalized_mse_ema" if averaged else "normalized_mse"]
    assert scored(model, plan) == pytest.approx(recorded, rel=1e-5)
    assert result["normalized_mse"] != pytest.approx(result["normalized_mse_ema"], rel=1e-5)
    facts = model.facts
    assert (facts.format, facts.n_latents, facts.d_model) == (name, 64, 64)
    assert (facts.normalization, facts.architecture) == ("none", plan.autoencoder.name)


def test_a_run_is_not_an_export(done: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ValueError, match=r"It is a run: export it first, python -m scaling\.export"
    ):
        scaling.load_autoencoder(done.path)


def test_a_native_export_that_was_edited(tmp_path: Path, done: RunFolder) -> None:
    out = export.export(done, tmp_path / "out")
    path = out / "config.json"
    config = json.loads(path.read_text())
    for key, value, says in [
        ("schema_version", 2, "schema_version=2 is unknown"),
        ("architecture", "other", "architecture='other': it cannot be"),
        ("normalization", "other", "normalization='other': it cannot be"),
        ("n_latents", 65, r"not \[65, 64\]"),
        ("d_model", None, "d_model=None must be a whole number"),
    ]:
        path.write_text(json.dumps({**config, key: value}))
        with pytest.raises(ValueError, match=says):
            scaling.load_autoencoder(out)
    shutil.copytree(out, tmp_path / "repo" / "layer8")
    with pytest.raises(ValueError, match=r"name one of them \(layer8\)"):
        scaling.load_autoencoder(tmp_path / "repo")


def test_push_follows_the_export(
    tmp_path: Path,
    done: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pushed = []

    def push(folder: Path, repo: str, *, public: bool) -> str:
        assert (folder / "config.json").exists()
        pushed.append((folder, repo, public))
        return "https://there"

    monkeypatch.setattr(hub, "push", push)
    out = tmp_path / "out"
    arguments = [str(done.path), "--out", str(out), "--push"]
    assert export.main([*arguments, "no-owner"]) == 2
    assert "give OWNER/NAME" in capsys.readouterr().err
    assert (pushed, out.exists()) == ([], False)
    assert export.main([*arguments, "owner/name"]) == 0
    assert pushed == [(out, "owner/name", False)]
    assert capsys.readouterr().out == f"{out}\nhttps://there\n"
