from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling.activations.build import prepare
from scaling.runs.store import RunFolder, SweepStore
from scaling.sweep.planner import make_plan
from tests.compose import ROOT, tiny

MakeRun = Callable[..., RunFolder]


@pytest.fixture(autouse=True)
def ranks_find_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def plan_run(tmp_path: Path, *overrides: str) -> RunFolder:
    """A planned run of the plain engine."""
    config = tiny("engine=torch", "kernels=torch", *overrides)
    plan = make_plan(
        config, prepare(config.activations, tmp_path / "data", progress=lambda _: None)
    )
    folder = SweepStore(tmp_path / "runs" / "default").folder(plan.run_id)
    folder.prepare(plan.to_json())
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A planned run, and the wishes of tests.distributed.bodies."""

    def make(*overrides: str, **wishes: Any) -> RunFolder:
        folder = plan_run(tmp_path, *overrides)
        (folder.path / "wishes.json").write_text(json.dumps({"steps": 20, **wishes}))
        return folder

    return make
