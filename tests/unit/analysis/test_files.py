"""Files that are whole or absent, and the one place that writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from analysis.errors import TableError
from analysis.files import replace_text

ROOT = Path(__file__).parents[3]


def test_a_file_is_replaced_whole_and_a_link_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "there", tmp_path / "link"
    link.symlink_to(target)
    replace_text(link, "é\r\n")
    replace_text(link, "é\n\r\n")
    assert target.read_bytes() == "é\n\r\n".encode()
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"there", "link"}


def test_what_cannot_be_written_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "x", tmp_path / "file" / "x"):
        with pytest.raises(TableError, match=r"cannot write .*x \(No.*\); do this\."):
            replace_text(path, "text", remedy="do this")
    with pytest.raises(TableError, match="no regular file"):
        replace_text(Path(os.devnull), "text")
    with pytest.raises(TableError, match="no regular file"):
        replace_text(tmp_path, "text")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_old_content_stays_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fails(self: Path, target: Path) -> None:
        raise failure

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises((TableError, KeyboardInterrupt)):
        replace_text(path, "new")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_nothing_else_in_analysis_writes_aside_and_renames() -> None:
    renaming = ('.with_name(f".{', "temporary.replace(", "os.replace(")
    writers = [
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("analysis/**/*.py")
        if any(word in path.read_text() for word in renaming)
    ]
    assert writers == ["analysis/files.py"]
