"""Finished runs over a tiny subject model, and what a viewer sees of one."""

from __future__ import annotations

import shutil
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


@pytest.fixture(scope="session")
def _finished(
    tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, text_folder: Path
) -> RunFolder:
    root = tmp_path_factory.mktemp("finished")
    config = tiny(
        "train.tokens=1_024",
        f"data_dir={root / 'data'}",
        "activations=hf",
        f"activations.model={llama_folder}",
        f"activations.text={text_folder}",
        "activations.layer=2",
        "activations.context=8",
        "activations.max_tokens=600",
        "activations.eval_tokens=128",
        "activations.eval_fraction=0.2",
        "activations.model_dtype=float32",
        "activations.store_dtype=float32",
        "activations.processes=1",
        "autoencoder.n_latents=300",
    )
    spec = prepare(config.activations, root / "data", progress=lambda _: None)
    plan = make_plan(config, spec)
    folder = SweepStore(root / "runs" / "default").folder(plan.run_id)
    folder.prepare(plan.to_json())
    assert end_phase.take_up(folder)["status"] is Status.done
    return folder


@pytest.fixture
def finished(_finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of a finished run: 300 latents, two chunks, on the tiny Llama."""
    shutil.copytree(_finished.path, tmp_path / "sweep" / _finished.run_id)
    return RunFolder(tmp_path / "sweep" / _finished.run_id)
