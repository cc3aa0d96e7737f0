"""What one mesh wrote, another reads: rows, damage and all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from scaling.plan import MeshPlan
from scaling.storage.hashing import file_sha256
from scaling.storage.sealed import read_sealed, write_sealed
from scaling.train import checkpoint
from scaling.train.checkpoint import Checkpoints, Found, Origin, write_tensors
from scaling.train.mesh import ALONE, Mesh
from scaling.train.shard_files import is_per_latent, read_tensors
from tests.ranks import run_threads
from tests.unit.train.states import N, equal, full_state, local_state, rows_of

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4), (4, 1)]
RUN = "0123456789ab"


def checkpoints(folder: Path, mesh: Mesh, keep: int = 2, n_latents: int = N) -> Checkpoints:
    return Checkpoints(folder, RUN, keep, n_latents, mesh, timeout_s=30.0)


def origin(mesh: Mesh) -> Origin:
    return Origin("this machine", True, MeshPlan(dp=mesh.dp.size, latent=mesh.latent.size))


def save(folder: Path, shape: tuple[int, int], *steps: int, keep: int = 2) -> None:
    """Checkpoints after these steps, each the state of the seed of that number."""

    def work(mesh: Mesh) -> None:
        there = checkpoints(folder, mesh, keep)
        for step in steps:
            there.save(step, local_state(mesh, step), origin(mesh))
        there.finish()

    run_threads(work, *shape)


def load(folder: Path, shape: tuple[int, int]) -> list[Found]:
    return run_threads(lambda mesh: checkpoints(folder, mesh).load_newest(), *shape)


def assert_holds(found: list[Found], shape: tuple[int, int], step: int) -> None:
    states = run_threads(lambda mesh: local_state(mesh, step), *shape)
    for there, expected in zip(found, states, strict=True):
        assert there.step == step
        assert there.state is not None
        assert equal(there.state, expected)


@pytest.mark.parametrize("written", MESHES)
def test_every_mesh_reads_what_any_wrote(tmp_path: Path, written: tuple[int, int]) -> None:
    save(tmp_path, written, 3)
    for reading in MESHES:
        found = load(tmp_path, reading)
        assert_holds(found, reading, 3)
        expected = Origin("this machine", True, MeshPlan(dp=written[0], latent=written[1]))
        assert [there.origin for there in found] == [expected] * len(found)
        assert not any(there.warnings for there in found)


def test_four_shards_to_one_to_two_and_back(tmp_path: Path) -> None:
    shapes = [(1, 4), (1, 1), (1, 2), (2, 2), (1, 4)]
    save(tmp_path / "0", shapes[0], 5)
    for i, shape in enumerate(shapes[1:]):

        def carry_over(mesh: Mesh, i: int = i) -> None:
            state = checkpoints(tmp_path / str(i), mesh).load_newest().state
            assert state is not None
            there = checkpoints(tmp_path / str(i + 1), mesh)
            there.save(5, state, origin(mesh))
            there.finish()

        run_threads(carry_over, *shape)
    first, last = tmp_path / "0" / "step_00000005", tmp_path / "4" / "step_00000005"
    for path in first.iterdir():
        assert path.read_bytes() == (last / path.name).read_bytes()


def test_each_rank_writes_its_rows_and_no_others(tmp_path: Path) -> None:
    save(tmp_path, (2, 2), 3)
    folder = tmp_path / "step_00000003"
    manifest = read_sealed(folder / "manifest.json")
    rows = [entry["rows"] for entry in manifest["files"].values()]
    assert rows == [[0, 6], [12, 18], [6, 12], [18, 24]]
    for name, entry in manifest["files"].items():
        part = load_file(folder / name)
        expected = rows_of(full_state(3), range(*entry["rows"]))
        if name != "rank_00000.safetensors":
            expected = {key: expected[key] for key in expected if is_per_latent(key)}
            assert "b_pre" not in part
            assert "w_enc.step" not in part
        assert equal(part, expected)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["manifest.json", *manifest["files"]]


def test_fewer_latents_than_replicas(tmp_path: Path) -> None:
    def work(mesh: Mesh) -> None:
        there = checkpoints(tmp_path, mesh, n_latents=3)
        there.save(1, local_state(mesh, n_latents=3), origin(mesh))
        there.finish()

    run_threads(work, 4, 1)
    found = checkpoints(tmp_path, ALONE, n_latents=3).load_newest()
    assert found.state is not None
    assert equal(found.state, full_state(n_latents=3))


def test_swapped_rows_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: ranks that write each other's rows."""
    other_half = {0: range(N // 2, N), 1: range(N // 2)}
    with monkeypatch.context() as broken:
        broken.setattr(Mesh, "owned_rows", lambda mesh, _: other_half[mesh.rank])
        broken.setattr(checkpoint, "own_part", lambda tensors, *_: dict(tensors))
        save(tmp_path, (1, 2), 3)
    with pytest.raises(AssertionError):
        assert_holds(load(tmp_path, (1, 1)), (1, 1), 3)


def newest(folder: Path) -> Path:
    return max(folder.glob("step_*"))


def _truncate(folder: Path) -> None:
    path = folder / "rank_00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    path = folder / "rank_00003.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def _edit_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"bit_exact": true', '"bit_exact": false'))


def _reseal(folder: Path, **changes: object) -> None:
    write_sealed(folder / "manifest.json", read_sealed(folder / "manifest.json") | changes)


def _leave_out_a_file(folder: Path) -> None:
    files = read_sealed(folder / "manifest.json")["files"]
    del files["rank_00001.safetensors"]
    _reseal(folder, files=files)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate,
    "bit flipped": _flip,
    "a rank's file missing": lambda folder: (folder / "rank_00001.safetensors").unlink(),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest edited": _edit_manifest,
    "manifest cut off": lambda folder: (folder / "manifest.json").write_text("{"),
    "rows left out": _leave_out_a_file,
    "of another run": lambda folder: _reseal(folder, run_id="f" * 12),
    "of another step": lambda folder: _reseal(folder, step=4),
    "of another width": lambda folder: _reseal(folder, n_latents=2 * N),
    "from the future": lambda folder: _reseal(folder, schema_version=3),
    "moved": lambda folder: folder.rename(folder.with_name("step_00000999")),
    "empty": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("reading", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_is_passed_over_by_all_ranks_alike(
    tmp_path: Path, damage: str, reading: tuple[int, int]
) -> None:
    save(tmp_path, (2, 2), 3, 6)
    DAMAGE[damage](newest(tmp_path))
    found = load(tmp_path, reading)
    assert_holds(found, reading, 3)
    warnings = {tuple(there.warnings) for there in found}
    assert len(warnings) == 1
    (warning,) = warnings.pop()
    assert warning.startswith("checkpoint passed over: ")
    assert newest(tmp_path).name in warning


def test_with_no_sound_checkpoint_all_begin_anew(tmp_path: Path) -> None:
    save(tmp_path, (2, 1), 3, 6)
    for folder in tmp_path.glob("step_*"):
        (folder / "rank_00001.safetensors").unlink()
    for found in load(tmp_path, (1, 2)):
        assert (found.step, found.state, len(found.warnings)) == (0, None, 2)
    assert load(tmp_path / "absent", (1, 2))[0] == Found(0, None, None, [])


def test_only_the_last_are_kept_and_those_passed_over_do_not_count(tmp_path: Path) -> None:
    save(tmp_path, (1, 2), 1, 2, 3, 4)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000003", "step_00000004"]
    (newest(tmp_path) / "manifest.json").unlink()

    def resume(mesh: Mesh) -> None:
        there = checkpoints(tmp_path, mesh, keep=1)
        assert there.load_newest().step == 3
        there.save(3, local_state(mesh, 3), origin(mesh))
        there.finish()

    run_threads(resume, 1, 2)
    assert load(tmp_path, (1, 1))[0].step == 3


def test_a_step_saved_again_replaces_the_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, (1, 2), 1, 2)
    _reseal(newest(tmp_path), run_id="f" * 12)
    save(tmp_path, (2, 1), 2)
    assert_holds(load(tmp_path, (1, 1)), (1, 1), 2)


@pytest.mark.parametrize("reading", MESHES)
def test_the_format_before_this_one_still_loads(tmp_path: Path, reading: tuple[int, int]) -> None:
    folder = tmp_path / "step_00000003"
    folder.mkdir()
    path = folder / "state.safetensors"
    save_file(full_state(3), path)
    files = {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size}}
    facts = {"run_id": RUN, "step": 3, "fingerprint": "this machine", "bit_exact": True}
    write_sealed(folder / "manifest.json", {"schema_version": 1, **facts, "files": files})
    found = load(tmp_path, reading)
    assert_holds(found, reading, 3)
    assert found[0].origin == Origin("this machine", True, MeshPlan())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert load(tmp_path, reading)[0].step == 0


@pytest.mark.parametrize("written", MESHES)
def test_kept_tensors_of_any_mesh_are_read_whole(tmp_path: Path, written: tuple[int, int]) -> None:
    final = tmp_path / "weights"
    final.mkdir()
    (final / "of another attempt").touch()
    run_threads(
        lambda mesh: write_tensors(final, local_state(mesh), {"run_id": RUN}, N, mesh), *written
    )
    manifest, tensors = read_tensors(final)
    assert manifest["run_id"] == RUN
    assert equal(tensors, full_state())
    assert len(list(final.iterdir())) == written[0] * written[1] + 1
    assert list(tmp_path.iterdir()) == [final]


def test_the_files_are_plain_safetensors_with_tensors_aligned(tmp_path: Path) -> None:
    save(tmp_path, (1, 1), 3)
    content = (newest(tmp_path) / "rank_00000.safetensors").read_bytes()
    n_header = int.from_bytes(content[:8], "little")
    assert n_header % 8 == 0
    widths = {"F32": 4, "I64": 8, "BF16": 2}
    for entry in json.loads(content[8 : 8 + n_header]).values():
        assert entry["data_offsets"][0] % widths[entry["dtype"]] == 0


def test_a_state_of_other_rows_is_refused(tmp_path: Path) -> None:
    there = checkpoints(tmp_path, ALONE)
    with pytest.raises(ValueError, match="has 12 rows, its shard 24"):
        there.save(1, rows_of(full_state(), range(12)), origin(ALONE))
