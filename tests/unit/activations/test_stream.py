"""A live stream: the vectors of its text, by position alone, beside a store's held-out set."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling.activations import request, stream_block
from scaling.activations.build import describe, made_live, open_source, prepare
from scaling.activations.manifest import load_manifest
from scaling.activations.source import ActivationSource, SourceSpec, epochs
from scaling.activations.stream import StreamSource
from scaling.activations.stream_block import BlockKey, block_order
from scaling.activations.stream_shape import largest_n_train, stream_shape
from scaling.config import HarvestConfig, Normalization
from scaling.errors import UserError
from scaling.runs.record import Status
from scaling.runs.store import SweepStore
from scaling.sweep.footprint import check_memory, memory_bytes
from scaling.sweep.planner import make_plan
from tests.compose import tiny
from tests.integration.test_resume import attempt, comparable
from tests.unit.activations.conftest import ConfigMaker
from tests.unit.activations.stores import flip_byte, recipe
from tests.unit.activations.test_harvest import (
    distance_to_nearest,
    reference_vectors,
    silent,
    sorted_bytes,
)

BUFFER = 336
"""Three forward passes of 16 contexts with 7 vectors each."""


def live(harvest_config: ConfigMaker, **changes: object) -> HarvestConfig:
    return harvest_config(**{"stream": True, "buffer_tokens": BUFFER, **changes})


def opened(config: HarvestConfig, data_dir: Path) -> ActivationSource:
    return open_source(prepare(config, data_dir, progress=silent))


def streams() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "activations"]


def rows(source: ActivationSource, start: int, stop: int, *, seed: int = 0) -> torch.Tensor:
    """Vectors [start, stop) of the stream, asked for one by one."""
    batches = [
        source.train_batch(seed=seed, step=step, batch_tokens=1, shuffle_block=1)
        for step in range(start, stop)
    ]
    return torch.cat(batches)


def batch(source: ActivationSource, step: int, tokens: int, **others: int) -> torch.Tensor:
    return source.train_batch(
        **{"seed": 0, "step": step, "batch_tokens": tokens, "shuffle_block": 1, **others}
    )


def test_an_epoch_gives_the_vectors_of_the_training_text(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    config = live(harvest_config, max_tokens=1320, outlier_factor=1e9)
    source = opened(config, tmp_path)
    found = batch(source, 0, 1320)
    reference = reference_vectors(config, 2)
    assert found.dtype == torch.float32
    assert distance_to_nearest(found, reference["train"]).max() < 1e-5
    assert distance_to_nearest(found, reference["eval"]).median() > 1e-2
    # A vector at position 1 depends on two tokens only: a few repeat in so small a vocabulary.
    assert len(torch.unique(found, dim=0)) > 1280
    again = batch(source, 1, 1320)
    assert not torch.equal(again, found)
    # Blocks of other contexts are cut elsewhere, but nearly the same vectors come again.
    assert (distance_to_nearest(again, found) < 1e-5).float().mean() > 0.96
    assert epochs(source.spec, 2640) == 2


def test_contexts_are_spread_over_an_epoch_and_vectors_over_a_block(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    """Neighbours in the text are no neighbours in the stream."""
    config = live(harvest_config, outlier_factor=1e9)
    found = batch(opened(config, tmp_path), 0, 1200)
    reference = reference_vectors(config, 2)["train"]
    places = torch.cdist(found.double(), reference.double()).argmin(dim=1).float()
    for block in places.split(300):
        assert block.std() > 0.2 * len(reference)  # uniform: 0.29
    assert (places.diff().abs() < 7).float().mean() < 0.1


def test_a_batch_is_a_function_of_seed_and_position_alone(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    config = live(harvest_config)
    whole = batch(opened(config, tmp_path), 0, 3000)  # two and a half epochs
    source = opened(config, tmp_path)
    for step in (20, 3, 4, 5, 0, 23):  # resumed, back, on, across blocks and epochs
        assert torch.equal(batch(source, step, 125), whole[step * 125 :][:125])
    assert torch.equal(rows(source, 1195, 1205), whole[1195:1205])
    parts = [batch(source, 1, 400, replica=replica, replicas=4) for replica in range(4)]
    assert torch.equal(torch.cat(parts), whole[400:800])
    assert not torch.equal(batch(source, 0, 400, seed=1), whole[:400])


def test_a_batch_is_the_callers_own(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    source = opened(live(harvest_config), tmp_path)
    first = batch(source, 0, 100)
    kept = first.clone()
    first.zero_()
    assert torch.equal(batch(source, 0, 100), kept)


def test_outliers_are_left_out_and_all_positions_accounted_for(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    config = live(harvest_config, outlier_factor=1.75, normalization=Normalization.none)
    source = opened(config, tmp_path)
    norms = batch(source, 0, 1200).norm(dim=1)
    manifest = load_manifest(Path(source.spec.params["head"]["params"]["path"]))
    assert manifest is not None
    assert norms.max() <= 1.75 * manifest.median_norm
    facts, counts = source.spec.description["stream"], made_live(source)
    assert counts is not None
    assert counts["blocks"] >= facts["blocks"]
    assert counts["dropped_outlier"] > 0
    made = counts["blocks"] * facts["block_contexts"]
    assert counts["dropped_position"] == made
    given = counts["vectors"] - counts["repeated"]
    assert given + counts["dropped_outlier"] + counts["dropped_cut"] == made * 7
    assert facts["cut_share"] == pytest.approx(1 - 1200 / (facts["blocks"] * 336))


def test_block_order_takes_good_rows_once_each_or_begins_again() -> None:
    key, good = BlockKey(0, 0, 0), np.arange(100) % 10 != 3
    order = block_order(key, good, 80)
    assert len(set(order)) == 80
    assert good[order].all()
    assert not (np.diff(order) == 1).mean() > 0.1
    short = block_order(key, good, 95)
    assert sorted(set(short)) == np.flatnonzero(good).tolist()
    assert short[90:].tolist() == short[:5].tolist()
    assert len(block_order(key, np.zeros(100, bool), 80)) == 0
    for other in (BlockKey(1, 0, 0), BlockKey(0, 1, 0), BlockKey(0, 0, 1)):
        assert not np.array_equal(block_order(other, good, 80), order)


@pytest.mark.parametrize("n_train", [1, 335, 1200, 100_003])
def test_blocks_divide_an_epoch(n_train: int) -> None:
    shape = stream_shape(n_train, 1_000, replace(recipe(), context=8, batch_contexts=16))
    assert shape.block_rows <= 1_000
    assert (shape.start(0), shape.start(shape.n_blocks)) == (0, n_train)
    for number in {0, shape.n_blocks // 2, shape.n_blocks - 1}:
        first, stop = shape.start(number), shape.start(number + 1)
        assert shape.block_of(first) == shape.block_of(stop - 1) == number
        assert 0 < stop - first <= shape.block_rows * 63 / 64


def test_held_out_vectors_are_those_of_a_store_of_the_same_recipe(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "HEAD_TOKENS", 500)
    stored = prepare(harvest_config(), tmp_path / "stored", progress=silent)
    spec = prepare(live(harvest_config), tmp_path / "live", progress=silent)
    assert spec.eval_hash == stored.eval_hash
    assert spec.content_hash != stored.content_hash
    source, store = open_source(spec), open_source(stored)
    for ours, theirs in zip(source.eval_batches(64), store.eval_batches(64), strict=True):
        assert torch.equal(ours, theirs)
    # Calibrated on other vectors of the same text: nearly, but not exactly, the same.
    assert source.calibration.mean_predictor_mse == pytest.approx(
        store.calibration.mean_predictor_mse, rel=0.05
    )
    assert len(source.sample(10**6)) == 500
    reference = reference_vectors(live(harvest_config), 2)["train"]
    assert distance_to_nearest(source.sample(500), reference).max() < 1e-5
    kept = sum(map(len, sorted_bytes(tmp_path / "live" / "activations").values()))
    assert kept < 0.8 * sum(map(len, sorted_bytes(tmp_path / "stored" / "activations").values()))


def test_identity_is_the_recipe_and_the_order(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    def spec(folder: str, **changes: object) -> SourceSpec:
        return prepare(live(harvest_config, **changes), tmp_path / folder, progress=silent)

    first = spec("a")
    assert SourceSpec.from_json(first.to_json()) == first
    assert spec("b").content_hash == first.content_hash  # no path is in it
    assert describe(live(harvest_config), tmp_path / "a").spec == first
    others = [{"buffer_tokens": 700}, {"max_tokens": 1300}, {"layer": 1}, {"seed": 1}]
    hashes = {first.content_hash, *(spec("a", **other).content_hash for other in others)}
    assert len(hashes) == 5


def test_describe_foretells_that_nothing_is_stored(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "HEAD_TOKENS", 500)
    before = describe(live(harvest_config), tmp_path)
    assert (before.ready, before.n_train, before.harvest_tokens_missing) == (False, 1200, 700)
    assert "not stored" in before.note
    assert list(tmp_path.iterdir()) == []
    spec = prepare(live(harvest_config), tmp_path, progress=silent)
    after = describe(live(harvest_config), tmp_path)
    assert after.ready
    assert after.memory_bytes == before.memory_bytes == spec.memory_bytes
    weights = 4 * spec.description["subject_params"]
    blocks = 3 * BUFFER * (16 * 4 + 8)
    assert spec.memory_bytes == weights + blocks + 400 * 2**20


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"also_layers": [1]}, r"activations\.also_layers=\[1\].*activations\.stream=true"),
        ({"buffer_tokens": 100}, r"activations\.buffer_tokens=100.*112 vectors"),
    ],
)
def test_what_is_not_defined_is_refused(
    changes: dict[str, Any], match: str, harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=match):
        describe(live(harvest_config, **changes), tmp_path)


def test_too_many_outliers_are_refused(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"activations\.outlier_factor=1\.2 leaves out \d+"):
        prepare(live(harvest_config, outlier_factor=1.2), tmp_path, progress=silent)


def test_too_little_text_is_refused_with_what_would_do(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    config = live(harvest_config, max_tokens=10**6)
    with pytest.raises(UserError, match=r"activations\.max_tokens=1000000") as caught:
        prepare(config, tmp_path, progress=silent)
    assert list(tmp_path.glob("activations/*-head*")) == []  # told before anything was computed
    largest = int(str(caught.value).split("lower it to ")[1].split(" ")[0])
    assert largest > 3000
    assert (
        prepare(replace(config, max_tokens=largest), tmp_path, progress=silent).n_train == largest
    )


def test_the_largest_epoch_fits_its_contexts() -> None:
    settings = replace(recipe(), context=8, batch_contexts=16)
    for n_contexts in (16, 100, 1000, 12_345):
        n_train = largest_n_train(n_contexts, 1_000, settings)
        assert stream_shape(n_train, 1_000, settings).n_contexts <= n_contexts
        assert n_train > 0.8 * n_contexts * 7 - 16 * 7
    assert largest_n_train(0, 1_000, settings) == 0


def test_a_fault_in_the_background_is_the_runs(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(live(harvest_config), tmp_path)
    first = batch(source, 0, 100)
    calls = stream_block.layer_vectors

    def broken(*arguments: Any, **others: Any) -> Any:
        raise UserError(f"cannot read {others['name_of'](0)}")

    monkeypatch.setattr(stream_block, "layer_vectors", broken)
    for step in (50, 50, 53):  # asked for, asked for again, and made ahead of that
        with pytest.raises(UserError, match=r"cannot read train context \d+"):
            batch(source, step, 100)
    monkeypatch.setattr(stream_block, "layer_vectors", calls)
    assert torch.equal(batch(source, 0, 100), first)


def test_runs_of_a_process_share_a_stream_which_ends_with_them(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    spec = prepare(live(harvest_config), tmp_path, progress=silent)
    source = open_source(spec)
    assert isinstance(source, StreamSource)
    assert open_source(SourceSpec.from_json(spec.to_json())) is source
    batch(source, 0, 100)
    assert torch.get_num_threads() == threads
    assert len(streams()) == 1
    assert source._maker is not None
    model = weakref.ref(source._maker.subject._model)
    gc.disable()  # at once, not when the collector comes by: the next run loads one of its own
    try:
        del source
        assert model() is None
    finally:
        gc.enable()
    assert not streams()


def test_its_memory_is_planned_for(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    spec = prepare(live(harvest_config), tmp_path, progress=silent)
    plan = make_plan(tiny(), spec)
    needed = memory_bytes(tiny(), 16)
    assert plan.estimated_memory_bytes == needed + spec.memory_bytes
    assert make_plan(tiny("mesh.dp=2"), spec).estimated_memory_bytes > 2 * spec.memory_bytes
    held = spec.memory_bytes
    check_memory(tiny(), 16, needed + held, source_bytes=held)
    with pytest.raises(UserError, match=r"autoencoder\.n_latents=64"):
        check_memory(tiny(), 16, needed + held - 1, source_bytes=held)
    with pytest.raises(UserError, match=r"activations\.buffer_tokens"):
        check_memory(tiny(), 16, held, source_bytes=held)


def test_a_run_on_a_stream_resumes_to_the_bit(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    spec = prepare(live(harvest_config), tmp_path / "data", progress=silent)
    plan = make_plan(tiny("train.batch_tokens=100", "logger.every_tokens=500"), spec)
    folders = [SweepStore(tmp_path / name).folder(plan.run_id) for name in ("a", "b")]
    for folder in folders:
        folder.prepare(plan.to_json())
    straight, broken = folders
    expected = attempt(straight)
    assert attempt(broken, stop_after_rows=3).status is Status.preempted
    found = attempt(broken)
    assert (found.status, found.result) == (Status.done, expected.result)
    assert comparable(broken) == comparable(straight)
    assert found.cost["resumed_at_step"] > 0
    assert found.result["activations_id"] == spec.activations_id
    assert found.result["epochs"] == pytest.approx(10_200 / 1200)
    assert found.cost["live"]["blocks"] < expected.cost["live"]["blocks"]
    assert not streams()  # model and thread went with the run


def test_files_that_changed_are_named(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(harvest_config().model, model)
    config = live(harvest_config, model=str(model))
    spec = prepare(config, tmp_path, progress=silent)
    ids = Path(spec.params["contexts"])
    flip_byte(ids / "contexts.npy", -1)
    with pytest.raises(UserError, match=r"contexts\.npy does not match"):
        prepare(config, tmp_path, progress=silent)
    flip_byte(ids / "contexts.json", 20)
    with pytest.raises(UserError, match=r"token ids of a live stream.*Remove the folder"):
        open_source(spec)
    shutil.rmtree(ids)
    with pytest.raises(UserError, match=r"token ids of a live stream.*there are none"):
        open_source(spec)
    assert prepare(config, tmp_path, progress=silent) == spec  # tokenized anew
    flip_byte(model / "model.safetensors", -1)
    with pytest.raises(UserError, match=r"activations\.model=.* has changed"):
        open_source(spec)
