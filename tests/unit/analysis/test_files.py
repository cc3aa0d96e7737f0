"""Files that are whole or absent, and the one place that writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from analysis.calibrate import calibrate_command
from analysis.collect import collect_command
from analysis.dashboards.main import main as dashboards_command
from analysis.design import design_command
from analysis.errors import TableError
from analysis.files import check_target, checked_path, replace_text
from analysis.fit import fit_command
from analysis.frontier import frontier_command
from analysis.predict import predict_command

ROOT = Path(__file__).parents[3]
COMMANDS = {
    **{"fit": fit_command, "predict": predict_command, "frontier": frontier_command},
    **{"design": design_command, "collect": collect_command, "calibrate": calibrate_command},
    **{"dashboards": dashboards_command},
}
_DESIGN = [
    *("--target", "n=3,k=3,tokens=3", "--n", "3", "--k", "3", "--tokens", "3"),
    *("--budget-flops", "1e9"),
]


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


def _unusable(tmp_path: Path) -> dict[str, str]:
    """Paths of which the system cannot say what is there, and what it says instead."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    return {str(tmp_path / ("x" * 256)): "File name too long", str(loop): "symbolic links"}


@pytest.mark.parametrize("which", [0, 1], ids=["long", "loop"])
@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--law", "l_nk", "--table", "BAD"],
        ["fit", "--law", "l_nk", "--table", "x.csv", "--json", "BAD"],
        ["predict", "BAD", "n=3"],
        ["predict", "x.json", "n=3", "--json", "BAD"],
        ["frontier", "BAD"],
        ["frontier", "x.json", "--json", "BAD"],
        ["design", "BAD", *_DESIGN],
        ["design", "x.json", *_DESIGN, "--sweep", "BAD"],
        ["design", "x.json", *_DESIGN, "--runs", "BAD"],
        ["collect", "BAD", "--csv", "x.csv"],
        ["collect", "wandb:BAD", "--csv", "x.csv"],
        ["collect", "x", "--csv", "BAD"],
        ["calibrate", "BAD"],
        ["calibrate", "x", "--png", "BAD"],
        ["dashboards", "x", "--json", "BAD"],
    ],
    ids=" ".join,
)
def test_a_path_that_is_none_is_told_by_every_command(
    tmp_path: Path, words: list[str], which: int, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, reason = list(_unusable(tmp_path).items())[which]
    command, *rest = (word.replace("BAD", bad) for word in words)
    assert COMMANDS[command](rest) == 2
    told = capsys.readouterr().err
    assert "is no usable path" in told
    assert reason in told


def test_a_path_with_a_null_byte_is_none(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is no usable path"):
        checked_path(tmp_path / "a\0b")


def test_a_target_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_target(tmp_path / "x")
    (tmp_path / "file").write_text("")
    for path, why in (
        (tmp_path / "none" / "x", "No such file"),
        (tmp_path / "file" / "x", "Not a directory"),
        (tmp_path, "no regular file"),
    ):
        with pytest.raises(TableError, match=why):
            check_target(path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(TableError, match="Permission denied"):
        check_target(tmp_path / "x")
