"""A hostfile is checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.errors import UserError
from scaling.launchers.hostfile import Host, hosts_for, read_hostfile
from scaling.sweep.validate import validate
from tests.compose import tiny


def written(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


def test_hosts_comments_and_empty_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "# ours\n\nalpha  slots=4\nbeta slots=2 # older\n")
    assert read_hostfile(path) == [Host("alpha", 4), Host("beta", 2)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alpha slots=4\nbeta\n", "line 2, 'beta' is not of the form"),
        ("alpha slots=four\n", "line 1"),
        ("alpha slots=4 beta slots=4\n", "line 1"),
        ("alpha slots=0\n", "offers no slot"),
        ("alpha slots=1\nalpha slots=1\n", "line 2 names alpha again"),
        ("# nothing\n", "names no host"),
    ],
)
def test_what_is_no_hostfile_is_told_by_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_hostfile(written(tmp_path, text))


def test_a_run_takes_the_first_slots() -> None:
    hosts = [Host("alpha", 4), Host("beta", 4)]
    assert hosts_for(hosts, 6, "F") == [Host("alpha", 4), Host("beta", 2)]
    assert hosts_for(hosts, 3, "F") == [Host("alpha", 3)]
    with pytest.raises(UserError, match=r"F has 8 slots.*needs 16"):
        hosts_for(hosts, 16, "F")


def test_the_launch_refuses_a_mesh_larger_than_the_hosts(tmp_path: Path) -> None:
    path = written(tmp_path, "alpha slots=1\nbeta slots=1\n")
    keys = ["launcher=deepspeed", f"launcher.hostfile={path}"]
    validate(tiny(*keys, "mesh.latent=2"), n_train=None)
    with pytest.raises(UserError, match=r"2 slots.*needs 4"):
        validate(tiny(*keys, "mesh.latent=4"), n_train=None)
    with pytest.raises(UserError, match=r"launcher\.hostfile=/no/file cannot be read"):
        validate(tiny("launcher=deepspeed", "launcher.hostfile=/no/file"), n_train=None)
