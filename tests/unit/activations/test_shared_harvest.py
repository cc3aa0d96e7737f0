"""One harvest by several nodes that share a disk: here, by two processes of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from scaling.activations import crew, shared_crew
from scaling.activations.build import prepare
from scaling.activations.parts import Part
from scaling.activations.progress import Progress
from scaling.config import HarvestConfig
from tests.unit.activations.conftest import ConfigMaker
from tests.unit.activations.test_harvest import harvest, store_folders

HELPER = """
import json, os, signal, sys
from pathlib import Path
from scaling.activations import crew
from scaling.activations.build import help_prepare
from scaling.config import HarvestConfig

if sys.argv[3] == "dies":
    crew.Member.make = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
help_prepare(HarvestConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]), 1)
"""


@contextmanager
def helping(config: HarvestConfig, data_dir: Path, how: str) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [json.dumps(asdict(config)), str(data_dir), how]
    with subprocess.Popen([sys.executable, "-c", HELPER, *arguments]) as helper:
        try:
            yield helper
        finally:
            helper.kill()


@pytest.fixture
def led(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The parts that this process made itself."""
    made: list[Part] = []
    real = crew.Member.make

    def make(self: crew.Member, part: Part, on_tokens: Callable[[int], None]) -> None:
        made.append(part)
        real(self, part, on_tokens)

    monkeypatch.setattr(crew.Member, "make", make)
    return made


def test_two_nodes_make_the_bytes_of_one(
    harvest_config: ConfigMaker, tmp_path: Path, led: list[Part]
) -> None:
    config, seen = harvest_config(), list[Progress]()
    with helping(config, tmp_path / "two", "helps") as helper:
        prepare(config, tmp_path / "two", progress=seen.append, nodes=2)
        assert helper.wait(30) == 0  # it ends by itself
    by_two = list(led)
    harvest(config, tmp_path / "one")
    everything = led[len(by_two) :]
    assert by_two == shared_crew.share(everything, 0, 2)  # the helper made the others
    assert store_folders(tmp_path / "two") == store_folders(tmp_path / "one")
    harvested = [(p.done, p.total) for p in seen if p.phase == "harvest"]
    assert harvested == sorted(harvested)
    assert harvested[-1][0] == harvested[-1][1]


def test_what_a_dead_helper_leaves_is_made_by_the_leader(
    harvest_config: ConfigMaker, tmp_path: Path, led: list[Part]
) -> None:
    config = harvest_config()
    with helping(config, tmp_path / "two", "dies") as helper:
        prepare(config, tmp_path / "two", progress=lambda _: None, nodes=2)
        assert helper.wait(30) == -9
    by_two = list(led)
    harvest(config, tmp_path / "one")
    assert len(by_two) == len(led) - len(by_two) > 1
    assert store_folders(tmp_path / "two") == store_folders(tmp_path / "one")


def test_a_leader_without_helpers_waits_for_none_that_was_never_there(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_crew, "HELPER_APPEARS_WITHIN_S", 0.1)
    spec = prepare(harvest_config(), tmp_path, progress=lambda _: None, nodes=3)
    assert spec.n_train == 1200
    assert not list(tmp_path.glob("activations/*.work/round.json"))
