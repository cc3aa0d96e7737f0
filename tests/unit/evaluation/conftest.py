"""Finished runs over a tiny subject model, small enough to evaluate in a moment."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.activations.build import prepare
from scaling.runs.record import Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.sweep.planner import make_plan
from tests.compose import tiny
from tests.integration import end_phase
from tests.unit.activations.conftest import gpt2_folder, llama_folder, text_folder

__all__ = ["gpt2_folder", "llama_folder", "text_folder"]

RunMaker = Callable[..., RunFolder]


def planned(root: Path, *overrides: str) -> RunFolder:
    """A run in root/runs/default, its activations in root/data."""
    config = tiny("train.tokens=1_024", f"data_dir={root / 'data'}", *overrides)
    spec = prepare(config.activations, root / "data", progress=lambda _: None)
    plan = make_plan(config, spec)
    folder = SweepStore(root / "runs" / "default").folder(plan.run_id)
    folder.prepare(plan.to_json())
    return folder


def trained(folder: RunFolder) -> RunFolder:
    assert end_phase.take_up(folder)["status"] is Status.done
    return folder


def of_text(model: Path, text: Path) -> list[str]:
    return [
        "activations=hf",
        f"activations.model={model}",
        f"activations.text={text}",
        "activations.layer=2",
        "activations.context=8",
        "activations.max_tokens=600",
        "activations.eval_tokens=128",
        "activations.eval_fraction=0.2",
        "activations.model_dtype=float32",
        "activations.store_dtype=float32",
        "activations.processes=1",
    ]


@pytest.fixture(scope="session")
def _finished(
    tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, text_folder: Path
) -> RunFolder:
    root = tmp_path_factory.mktemp("finished")
    return trained(planned(root, *of_text(llama_folder, text_folder)))


@pytest.fixture
def finished(_finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of a finished run of the tiny Llama, in a sweep of its own."""
    shutil.copytree(_finished.path, tmp_path / "sweep" / _finished.run_id)
    return RunFolder(tmp_path / "sweep" / _finished.run_id)
