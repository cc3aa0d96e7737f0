import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.errors import UserError
from scaling.storage import atomic


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)


def test_json_comes_back_as_written(tmp_path: Path):
    value = {"b": [1, 2.5, None], "a": {"x": "é"}}
    atomic.write_json(tmp_path / "v.json", value)
    assert atomic.read_json(tmp_path / "v.json") == value
    assert [path.name for path in tmp_path.iterdir()] == ["v.json"]


def test_nan_is_refused_and_the_old_content_stays(tmp_path: Path):
    atomic.write_json(tmp_path / "v.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "v.json", {"loss": float("nan")})
    assert atomic.read_json(tmp_path / "v.json") == {"loss": 1.0}


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"a": 1', b"\xff\xfe\x00", b"nonsense", b"1" * 5000, b"[" * 100_000],
    ids=["empty", "cut", "not UTF-8", "words", "too many digits", "too deep"],
)
def test_damaged_json_names_the_file(tmp_path: Path, damage: bytes):
    (tmp_path / "record.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"record\.json is not valid JSON"):
        atomic.read_json(tmp_path / "record.json")


def test_full_disk_keeps_the_old_content_and_names_the_bytes(tmp_path: Path, request):
    path = tmp_path / "v.json"
    atomic.write_bytes(path, b"old")
    request.getfixturevalue("full_disk")
    with pytest.raises(UserError, match=r"disk is full while writing .*v\.json: 1,000 bytes"):
        atomic.write_bytes(path, b"x" * 1000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_at_flush_and_from_a_foreign_library(tmp_path: Path, monkeypatch):
    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="disk is full"):
        atomic.write_bytes(tmp_path / "v", b"data")
    with pytest.raises(UserError, match="disk is full"), atomic.atomic_path(tmp_path / "v"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_and_leave_nothing(tmp_path: Path):
    def fail_halfway() -> None:
        with atomic.atomic_path(tmp_path / "v") as temp:
            temp.write_bytes(b"half")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_be_renamed_as_soon_as_its_last_file_is_there(tmp_path: Path, monkeypatch):
    """As the leading rank does once it has every rank's word."""
    folder, final, replace = tmp_path / "aside", tmp_path / "final", Path.replace
    folder.mkdir()

    def and_renamed(self: Path, target: Path) -> Path:
        there = replace(self, target)
        folder.rename(final)
        return there

    monkeypatch.setattr(Path, "replace", and_renamed)
    atomic.write_json(folder / "word.json", {"token": 1})
    assert atomic.read_json(final / "word.json") == {"token": 1}


def test_folder_is_committed_whole_and_never_over_another(tmp_path: Path):
    temp, final = tmp_path / "temp", tmp_path / "final"
    (temp / "deep").mkdir(parents=True)
    (temp / "deep" / "a").write_bytes(b"a")
    atomic.commit_folder(temp, final)
    assert (final / "deep" / "a").read_bytes() == b"a"
    assert not temp.exists()
    temp.mkdir()
    with pytest.raises(FileExistsError):
        atomic.commit_folder(temp, final)
    assert (final / "deep" / "a").exists()


def test_folder_on_a_full_disk_is_removed(tmp_path: Path, monkeypatch):
    temp = tmp_path / "temp"
    temp.mkdir()
    (temp / "a").write_bytes(b"abc")

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=r"final: 3 bytes were needed"):
        atomic.commit_folder(temp, tmp_path / "final")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_filled_aside_and_dropped_on_any_error(tmp_path: Path):
    final = tmp_path / "deep" / "weights"
    (final.with_name(".weights.tmp")).mkdir(parents=True)
    (final.with_name(".weights.tmp") / "stale").touch()  # a killed writer's
    with atomic.atomic_folder(final) as temp:
        (temp / "a").write_bytes(b"a")
        assert not final.exists()
    assert [path.name for path in final.iterdir()] == ["a"]
    with pytest.raises(FileExistsError), atomic.atomic_folder(final):
        pass
    with pytest.raises(UserError, match="disk is full"), atomic.atomic_folder(tmp_path / "b"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not (tmp_path / ".b.tmp").exists()


def test_leftovers_are_removed_be_they_files_or_folders(tmp_path: Path):
    for name in (".weights.tmp", ".step_00000004.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.safetensors").touch()
    for name in (".record.json.1-ab.tmp", ".plan.json.1-ab.tmp", "record.json"):
        (tmp_path / name).touch()
    atomic.remove_temporaries(tmp_path, but_of=["plan.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".plan.json.1-ab.tmp",
        "record.json",
    ]
    atomic.remove_temporaries(tmp_path / "absent")


_WRITE_FOREVER = """
import sys
from pathlib import Path
from scaling.storage.atomic import write_json
path, i = Path(sys.argv[1]), 0
while True:
    write_json(path, {"first": i, "padding": "x" * 200_000, "last": i})
    i += 1
    print(i, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path):
    path = tmp_path / "v.json"
    for lines_before_kill in (1, 2, 5):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITE_FOREVER, str(path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        for _ in range(lines_before_kill):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        value = atomic.read_json(path)
        assert value["first"] == value["last"] >= lines_before_kill - 1
    atomic.remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
