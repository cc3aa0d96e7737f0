"""Where a run's text and subject model are found again, and what is said where they are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scaling import evaluate
from scaling.errors import UserError
from scaling.evaluate_material import material_of
from scaling.evaluation.material import VectorMaterial
from scaling.evaluation.options import parsed
from scaling.interchange.normalization import normalized
from scaling.run_weights import load_run, plan_of
from scaling.runs.store import RunFolder
from tests.unit.evaluation.conftest import of_text, planned, trained

FEW = ["metrics=downstream", "contexts=4"]


def content(path: Path) -> Any:
    return json.loads(path.read_text())


def evaluated(*arguments: object) -> int:
    return evaluate.main([str(argument) for argument in arguments])


def moved(folder: RunFolder, key: str, value: str) -> None:
    """As if the launch had been where `key` lies elsewhere."""
    plan = folder.read_plan()
    place = plan["config"] if key == "data_dir" else plan["config"]["activations"]
    place[key] = value
    plan["source"]["params"]["path"] = "/gone/activations/store"
    folder.plan_path.write_text(json.dumps(plan))


def test_kept_tokens_are_the_vectors_held_out(finished: RunFolder) -> None:
    plan = plan_of(finished)
    material = material_of(plan, parsed(["contexts=100000"]))
    kept = torch.cat([b.residual_CTD[b.kept_CT] for b in material.batches()])
    stored, _ = normalized(kept, "unit_norm")
    from scaling.activations.build import open_source

    held_out = torch.cat(list(open_source(plan.source).eval_batches(64)))
    # The store's rows are shuffled and are the first that were asked for: each is one of ours.
    nearest = torch.cdist(held_out, stored).amin(dim=1)
    assert nearest.max() < 1e-3
    assert len(stored) > len(held_out)
    recon = load_run(finished).reconstruct(kept)
    assert recon.shape == kept.shape


def test_held_out_vectors_come_in_whole_contexts() -> None:
    vectors_RD = torch.arange(150.0)[:, None].repeat(1, 3)
    source: Any = SimpleNamespace(eval_batches=lambda n: iter(vectors_RD.split(n)))
    batches = list(VectorMaterial(source, 2, 1).batches())
    assert torch.equal(torch.cat([b.residual_CTD.flatten(0, 1) for b in batches]), vectors_RD[:128])
    few: Any = SimpleNamespace(eval_batches=lambda n: iter(vectors_RD[:63].split(n)))
    with pytest.raises(UserError, match="fewer than 64 vectors are held out"):
        list(VectorMaterial(few, 2, 1).batches())


@pytest.mark.parametrize("key", ["data_dir", "model", "text"])
def test_what_has_moved_is_given_and_must_be_the_same(
    finished: RunFolder,
    key: str,
    llama_folder: Path,
    gpt2_folder: Path,
    text_folder: Path,
    tmp_path: Path,
    capsys: Any,
) -> None:
    config = finished.read_plan()["config"]
    where = {"data_dir": config["data_dir"], "model": llama_folder, "text": text_folder}
    (tmp_path / "other.txt").write_text("w1 w2 " * 200)
    others = {"data_dir": tmp_path, "model": gpt2_folder, "text": tmp_path / "other.txt"}
    moved(finished, key, str(tmp_path / "gone"))
    data_dir = "" if key == "data_dir" else f"data_dir={where['data_dir']}"
    given = [text for text in (data_dir,) if text]
    assert evaluated(finished.path, *FEW, *given) == 1
    assert evaluated(finished.path, *FEW, *given, f"{key}={others[key]}") == 1
    out = capsys.readouterr().out
    assert "give the right ones by model=FOLDER text=FILE" in out
    assert not finished.evaluation_path.exists()
    assert evaluated(finished.path, *FEW, *given, f"{key}={where[key]}") == 0


def test_a_store_says_all_but_where_its_model_and_text_are(
    finished: RunFolder, tmp_path: Path, llama_folder: Path, text_folder: Path, capsys: Any
) -> None:
    assert evaluated(finished.path, *FEW) == 0
    store = plan_of(finished).source.params["path"]
    folder = trained(
        planned(tmp_path, "activations=store", f"activations.path={store}",
                "activations.max_tokens=600", "activations.eval_tokens=128")
    )  # fmt: skip
    assert folder.run_id == finished.run_id  # runs are what they were trained on
    assert evaluated(folder.path, *FEW) == 1
    assert "a store does not say where its model and text" in capsys.readouterr().out
    where = [f"model={llama_folder}", f"text={text_folder}"]
    assert evaluated(folder.path, *FEW, *where) == 0
    ours, first = content(folder.evaluation_path), content(finished.evaluation_path)
    assert ours["downstream_kl"] == pytest.approx(first["downstream_kl"], rel=1e-6)


def test_a_run_that_reads_a_stream(tmp_path: Path, llama_folder: Path, text_folder: Path) -> None:
    folder = trained(
        planned(tmp_path, *of_text(llama_folder, text_folder), "activations.stream=true",
                "activations.buffer_tokens=512")
    )  # fmt: skip
    assert evaluated(folder.path, *FEW) == 0
    assert content(folder.evaluation_path)["metrics"]["downstream"]["notes"]["n_tokens"] == 4 * 7


_WANDB = """
import json, os
class Settings(dict): pass
class Summary:
    def update(self, row):
        with open(os.environ["NOTES"], "a") as file:
            file.write(json.dumps(row) + "\\n")
class Run:
    step = 0
    summary = Summary()
    def define_metric(self, *a, **k): pass
    def log(self, row, step): pass
    def finish(self, exit_code): pass
def init(**options): return Run()
"""


def test_runs_of_wandb_get_their_numbers_there(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = finished.read_plan()
    plan["config"]["logger"]["name"] = "wandb"
    finished.plan_path.write_text(json.dumps(plan))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(_WANDB)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}:{Path(evaluate.__file__).parents[1]}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    assert evaluated(finished.path, *FEW) == 0
    kl = content(finished.evaluation_path)["downstream_kl"]
    (row,) = map(json.loads, (tmp_path / "notes").read_text().splitlines())
    assert row["evaluation/downstream_kl"] == kl
    assert evaluated(finished.path, *FEW) == 0  # nothing new: nothing sent
    assert len((tmp_path / "notes").read_text().splitlines()) == 1


def test_a_model_of_the_hub_comes_from_its_cache(
    tmp_path: Path, llama_folder: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(llama_folder, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    for name, value in (("HF_HUB_CACHE", str(tmp_path / "hub")), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)  # for processes that harvest
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    folder = trained(planned(tmp_path, *of_text(Path("someone/tiny"), text_folder)))
    assert evaluated(folder.path, *FEW) == 0
    shutil.rmtree(tmp_path / "hub")
    assert evaluated(folder.path, *FEW, "contexts=3") == 1
