import subprocess
from pathlib import Path

from scaling.runs import provenance
from scaling.runs.fields import COST_FIELDS


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _repository(folder: Path) -> Path:
    folder.mkdir()
    _git(folder, "init", "-q")
    (folder / "__init__.py").write_text("")
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "-m", "first")
    return folder


def test_commit_and_whether_the_tree_differs(tmp_path: Path):
    package = _repository(tmp_path / "package")
    commit = _git(package, "rev-parse", "HEAD")
    read = provenance._commit.__wrapped__
    assert read(package) == (commit, False)
    (package / "__init__.py").write_text("changed = True")
    assert read(package) == (commit, True)


def test_outside_a_repository_or_merely_inside_another_there_is_no_commit(tmp_path: Path):
    read = provenance._commit.__wrapped__
    installed = _repository(tmp_path / "other") / "site-packages"
    installed.mkdir()
    (installed / "__init__.py").write_text("")
    assert read(installed) == (None, None)
    alone = tmp_path / "alone"
    alone.mkdir()
    assert read(alone) == (None, None)


def test_its_fields_are_in_the_schema():
    found = provenance.provenance()
    assert found.keys() <= COST_FIELDS.keys()
    assert found["versions"]["torch"]
