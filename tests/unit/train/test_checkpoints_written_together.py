"""Ranks that write one folder: at once, too late, never, or killed on the way."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import UserError
from scaling.storage.sealed import write_sealed
from scaling.train import shared_folder
from scaling.train.checkpoint import Checkpoints, write_tensors
from scaling.train.mesh import ALONE, Mesh
from scaling.train.shared_folder import PartsMissing, SharedFolder
from tests.ranks import run_threads
from tests.unit.train.states import N, full_state, local_state
from tests.unit.train.test_checkpoints_reshard import (
    RUN,
    assert_holds,
    checkpoints,
    load,
    origin,
    save,
)


def refuse(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_saving_goes_on_beside_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_commit = threading.Event()
    commit = shared_folder.commit_folder

    def late(temp: Path, final: Path) -> None:
        assert may_commit.wait(30)
        commit(temp, final)

    monkeypatch.setattr(shared_folder, "commit_folder", late)
    there = checkpoints(tmp_path, ALONE)
    there.save(1, full_state(1), origin(ALONE))  # returns though nothing can be committed yet
    assert list(tmp_path.glob("step_*")) == []
    threading.Timer(0.2, may_commit.set).start()
    there.save(2, full_state(2), origin(ALONE))  # waits for the first
    assert [path.name for path in tmp_path.glob("step_*")][:1] == ["step_00000001"]
    there.finish()
    assert_holds(load(tmp_path, (1, 1)), (1, 1), 2)
    there.finish()  # harmless


def test_a_full_disk_is_told_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = checkpoints(tmp_path, ALONE)
    there.save(1, full_state(1), origin(ALONE))
    there.finish()
    with monkeypatch.context() as full:
        full.setattr("scaling.train.tensor_file.os.fsync", refuse)
        there.save(2, full_state(2), origin(ALONE))
        with pytest.raises(UserError, match=r"disk is full while writing .*step_00000002"):
            there.save(3, full_state(3), origin(ALONE))
        there.save(3, full_state(3), origin(ALONE))
        with pytest.raises(UserError, match="disk is full"):
            there.finish()
        there.save(4, full_state(4), origin(ALONE))
        there.abandon()  # raises nothing
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert_holds(load(tmp_path, (1, 1)), (1, 1), 1)


def test_the_leading_rank_learns_of_a_full_disk_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = shared_folder.write_tensor_file

    def refuse_one(path: Path, tensors: Any) -> Any:
        return refuse() if path.name == "rank_00002.safetensors" else write(path, tensors)

    monkeypatch.setattr(shared_folder, "write_tensor_file", refuse_one)
    errors: list[str] = []

    def work(mesh: Mesh) -> None:
        there = checkpoints(tmp_path, mesh)
        there.save(1, local_state(mesh), origin(mesh))
        try:
            there.finish()
        except UserError as error:
            errors.append(f"{mesh.rank}: {error}")

    started_s = time.monotonic()
    run_threads(work, 2, 2)
    assert time.monotonic() - started_s < 20  # and not the timeout
    errors.sort()
    assert len(errors) == 2
    assert errors[0].startswith("0: rank 2 could not write its part: the disk is full")
    assert errors[1].startswith("2: the disk is full")
    assert_nothing_is_there(tmp_path)


def assert_nothing_is_there(folder: Path) -> None:
    """No checkpoint, and nothing aside once the run is taken up again."""
    assert list(folder.glob("step_*")) == []
    assert load(folder, (1, 2))[0].warnings == []
    assert list(folder.iterdir()) == []


def silent(monkeypatch: pytest.MonkeyPatch, *ranks: int) -> None:
    """Ranks that are killed before they have written anything."""
    write = SharedFolder.write_part

    def write_part(self: SharedFolder, tensors: Any) -> None:
        if self.rank not in ranks:
            write(self, tensors)

    monkeypatch.setattr(SharedFolder, "write_part", write_part)


def test_a_rank_that_never_writes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, (2, 2), 1)

    def work(mesh: Mesh) -> None:
        there = Checkpoints(tmp_path, RUN, 2, N, mesh, timeout_s=0.3)
        there.save(2, local_state(mesh, 2), origin(mesh))
        there.finish()

    with monkeypatch.context() as patch:
        silent(patch, 1, 3)
        with pytest.raises(PartsMissing, match=r"ranks 1, 3 have not .*step_00000002 within 0.3 s"):
            run_threads(work, 2, 2)
    found = load(tmp_path, (1, 4))
    assert_holds(found, (1, 4), 1)
    assert not found[0].warnings
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_run_that_is_over_waits_for_no_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent(monkeypatch, 1)

    def work(mesh: Mesh) -> None:
        there = checkpoints(tmp_path, mesh)
        there.save(2, local_state(mesh, 2), origin(mesh))
        there.abandon()

    started_s = time.monotonic()
    run_threads(work, 1, 2)
    assert time.monotonic() - started_s < 10
    assert_nothing_is_there(tmp_path)


def test_what_killed_attempts_left_is_never_taken_for_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 dies in each attempt, after an earlier one in which it had written its part."""
    save(tmp_path, (1, 2), 1)
    with monkeypatch.context() as killed:
        killed.setattr(SharedFolder, "commit", lambda *_, **__: None)
        save(tmp_path, (1, 2), 2)
    (left,) = tmp_path.glob(".step_00000002.*.tmp")
    assert len(list(left.iterdir())) == 4  # two files and two words

    def work(mesh: Mesh) -> None:
        there = Checkpoints(tmp_path, RUN, 2, N, mesh, timeout_s=0.3)
        there.save(2, local_state(mesh, 3), origin(mesh))
        there.finish()

    with monkeypatch.context() as killed:
        silent(killed, 1)
        with pytest.raises(PartsMissing, match="rank 1 has not"):
            run_threads(work, 1, 2)
    assert left.exists()
    assert_holds(load(tmp_path, (1, 2)), (1, 2), 1)
    assert not left.exists()  # taking up clears away


def test_a_word_of_another_attempt_is_refused(tmp_path: Path) -> None:
    shared = SharedFolder.begin(tmp_path / "step_00000001", ALONE, N)
    shared.write_part(full_state())
    write_sealed(shared.aside / "rank_00000.json", {"token": "another", "entry": {}})
    with pytest.raises(ValueError, match="of another attempt"):
        shared.commit({}, timeout_s=1.0, guard=lambda: None, abandoned=threading.Event())


@pytest.mark.parametrize("moment", ["write_sealed", "commit_folder"])
def test_killed_between_files_manifest_and_name_the_newest_is_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    save(tmp_path, (2, 1), 1)

    class Killed(BaseException):
        pass

    original = getattr(shared_folder, moment)

    def die(path: Path, content: Any) -> None:
        if moment == "commit_folder" or path.name == "manifest.json":
            raise Killed
        original(path, content)

    def work(mesh: Mesh) -> None:
        there = checkpoints(tmp_path, mesh)
        there.save(2, local_state(mesh, 2), origin(mesh))
        there.finish()

    with monkeypatch.context() as killed:
        killed.setattr(shared_folder, moment, die)
        # A kill cleans nothing up.
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            run_threads(work, 2, 1)
    assert len(list(tmp_path.glob(".step_*.tmp"))) == 1
    found = load(tmp_path, (1, 2))
    assert_holds(found, (1, 2), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_run_taken_over_shows_no_checkpoint(tmp_path: Path) -> None:
    class Lost(RuntimeError):
        pass

    def lost() -> None:
        raise Lost

    there = Checkpoints(tmp_path, RUN, 2, N, guard=lost)
    there.save(1, full_state(1), origin(ALONE))
    with pytest.raises(Lost):
        there.finish()
    with pytest.raises(Lost):
        write_tensors(tmp_path / "weights", full_state(), {}, N, guard=lost)
    assert list(tmp_path.iterdir()) == []
