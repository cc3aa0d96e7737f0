"""Stores: what went in comes out, once per epoch; damage is found; old views stay."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from scaling.activations import segment as segment_module
from scaling.activations.build import open_source
from scaling.activations.manifest import load_manifest
from scaling.activations.source import SourceSpec, epochs
from scaling.activations.store import StoreSource, store_spec, verify_view
from scaling.errors import UserError
from scaling.storage.sealed import write_sealed
from tests.unit.activations.stores import extend_store, flip_byte, row_numbers, sorted_bytes


def view(store: Path, n_train: int | None = None, n_eval: int | None = None) -> SourceSpec:
    manifest = load_manifest(store)
    assert manifest is not None
    return store_spec(store, manifest, n_train=n_train, n_eval=n_eval)


def verify(spec: SourceSpec) -> None:
    verify_view(spec, lambda done, total: None)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """350 training rows in shards of 128, 150 held-out rows."""
    monkeypatch.setattr(segment_module, "SHARD_BYTES", 128 * 8 * 2)
    extend_store(tmp_path / "store", n_train=350, n_eval=150)
    return tmp_path / "store"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_come_back_shuffled_without_outliers(tmp_path: Path, dtype: str) -> None:
    extend_store(tmp_path / "store", n_train=350, n_eval=150, dtype=dtype)
    source = open_source(view(tmp_path / "store"))
    numbers = row_numbers(source.sample(10_000))
    expected = [n for n in range(400) if n % 100 != 99][:350]
    assert sorted(numbers) == expected
    assert numbers != expected
    assert source.sample(5).dtype == torch.float32


def test_calibration_is_the_mean_and_its_error(store: Path) -> None:
    source = open_source(view(store))
    sample = source.sample(128)  # the first shard's rows
    torch.testing.assert_close(source.calibration.mean_D, sample.mean(0))
    error = (sample - sample.mean(0)).square().mean().item()
    assert source.calibration.mean_predictor_mse == pytest.approx(error, rel=1e-6)


def test_one_epoch_of_batches_is_every_row_once(store: Path) -> None:
    source = open_source(view(store))
    batches = [
        source.train_batch(seed=1, step=step, batch_tokens=50, shuffle_block=1)
        for step in range(14)
    ]
    first, second = row_numbers(torch.cat(batches[:7])), row_numbers(torch.cat(batches[7:]))
    assert sorted(first) == sorted(second) == sorted(row_numbers(source.sample(350)))
    assert first != second
    assert epochs(source.spec, 700) == 2.0


def test_reading_needs_no_state(store: Path) -> None:
    ahead, fresh = StoreSource(view(store)), StoreSource(view(store))
    for step in range(20):
        batch = ahead.train_batch(seed=0, step=step, batch_tokens=64, shuffle_block=4)
    assert torch.equal(batch, fresh.train_batch(seed=0, step=19, batch_tokens=64, shuffle_block=4))
    assert not torch.equal(
        batch, fresh.train_batch(seed=1, step=19, batch_tokens=64, shuffle_block=4)
    )


def test_held_out_rows_are_the_same_for_every_batch_size(store: Path) -> None:
    source = open_source(view(store))
    batches = list(source.eval_batches(64))
    assert [len(batch) for batch in batches] == [64, 64, 22]
    assert torch.equal(torch.cat(batches), torch.cat(list(source.eval_batches(4096))))


def test_spec_survives_json(store: Path) -> None:
    spec = view(store)
    assert SourceSpec.from_json(spec.to_json()) == spec


def test_extending_keeps_every_older_view(store: Path) -> None:
    old, files = view(store), sorted_bytes(store)
    batch = open_source(old).train_batch(seed=0, step=3, batch_tokens=64, shuffle_block=1)
    extend_store(store, n_train=200, n_eval=0)
    extended = open_source(view(store, n_train=350))
    assert extended.spec == old
    assert torch.equal(
        extended.train_batch(seed=0, step=3, batch_tokens=64, shuffle_block=1), batch
    )
    files.pop("manifest.json")
    assert files.items() <= sorted_bytes(store).items()

    larger = view(store)
    assert larger.n_train == 550
    assert larger.content_hash != old.content_hash
    assert larger.eval_hash == old.eval_hash
    numbers = row_numbers(open_source(larger).sample(1000))
    assert len(set(numbers)) == 550


def test_shorter_view_has_a_hash_of_its_own(store: Path) -> None:
    assert view(store, n_train=349).content_hash != view(store).content_hash
    assert view(store, n_eval=149).eval_hash != view(store).eval_hash
    assert view(store, n_eval=149).content_hash == view(store).content_hash


def test_view_larger_than_the_store_is_refused(store: Path) -> None:
    with pytest.raises(UserError, match=r"activations\.max_tokens=351 is more than the 350"):
        view(store, n_train=351)


def test_intact_store_verifies(store: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify_view(view(store), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (500 * 16, 500 * 16)


@pytest.mark.parametrize(
    "name", ["train-000000/shard-00002.bin", "eval-000000/shard-00000.bin", "calibration.f32"]
)
def test_flipped_byte_is_found(store: Path, name: str) -> None:
    spec = view(store)
    flip_byte(store / name)
    with pytest.raises(UserError, match=rf"corrupt.*{name}.*Remove the folder {store}"):
        verify(spec)


def test_truncated_shard_is_found_even_without_hashing(store: Path) -> None:
    spec = view(store)
    shard = store / "train-000000/shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"shard-00001.bin has 2046 bytes instead of 2048"):
        open_source(spec)


def test_missing_shard_is_found(store: Path) -> None:
    spec = view(store)
    (store / "train-000000/shard-00000.bin").unlink()
    with pytest.raises(UserError, match=r"shard-00000.bin is missing"):
        verify(spec)


def test_damage_outside_the_view_does_no_harm(store: Path) -> None:
    spec = view(store, n_train=100)
    flip_byte(store / "train-000000/shard-00002.bin")
    verify(spec)


def test_other_store_in_the_same_place_is_refused(store: Path) -> None:
    spec = view(store)
    shutil.rmtree(store)
    with pytest.raises(UserError, match="there is no store"):
        open_source(spec)
    extend_store(store, n_train=300, n_eval=150)
    extend_store(store, n_train=50, n_eval=0)
    with pytest.raises(UserError, match="holds other vectors"):
        open_source(spec)


def test_moved_store_is_the_same_store(store: Path, tmp_path: Path) -> None:
    spec = view(store)
    shutil.move(store, tmp_path / "elsewhere")
    moved = view(tmp_path / "elsewhere")
    assert (moved.content_hash, moved.eval_hash) == (spec.content_hash, spec.eval_hash)


def test_damaged_manifest_is_one_error(store: Path) -> None:
    path = store / "manifest.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=r"manifest\.json is not valid JSON"):
        load_manifest(store)
    write_sealed(path, {"schema_version": 1, "recipe": {}})
    with pytest.raises(UserError, match="has no sound manifest"):
        load_manifest(store)
    write_sealed(path, {"schema_version": 99})
    with pytest.raises(UserError, match="schema_version=99"):
        load_manifest(store)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [('"mean_predictor_mse": ', '"mean_predictor_mse": 1'), ('"layer": 1', '"layer": 2')],
)
def test_a_number_changed_in_the_manifest_is_found(store: Path, was: str, becomes: str) -> None:
    path = store / "manifest.json"
    changed = path.read_text().replace(was, becomes)
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(UserError, match="does not match its own sha256"):
        load_manifest(store)


def test_many_readers_at_once(store: Path) -> None:
    spec = view(store)

    def read(step: int) -> torch.Tensor:
        return StoreSource(spec).train_batch(seed=0, step=step, batch_tokens=32, shuffle_block=1)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(read, range(32)))
    assert all(torch.equal(batch, read(step)) for step, batch in enumerate(together))


def test_rows_beyond_the_view_cannot_be_read(store: Path) -> None:
    source = StoreSource(view(store, n_train=100))
    assert len(source.sample(1000)) == 100
    with pytest.raises(IndexError, match="row 100"):
        source._train.read(torch.tensor([100]).numpy())
