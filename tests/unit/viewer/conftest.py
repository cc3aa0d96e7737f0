"""A finished run over a tiny subject model, in two chunks of latents."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scaling.runs.store import RunFolder
from tests.unit.activations.conftest import gpt2_folder, llama_folder, text_folder
from tests.unit.evaluation.conftest import of_text, planned, trained

__all__ = ["gpt2_folder", "llama_folder", "text_folder"]


@pytest.fixture(scope="session")
def wide_run(
    tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, text_folder: Path
) -> RunFolder:
    """Not to be written to."""
    root = tmp_path_factory.mktemp("wide")
    overrides = of_text(llama_folder, text_folder)
    return trained(planned(root, *overrides, "autoencoder.n_latents=300"))


@pytest.fixture
def finished(wide_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it: 300 latents."""
    shutil.copytree(wide_run.path, tmp_path / "sweep" / wide_run.run_id)
    return RunFolder(tmp_path / "sweep" / wide_run.run_id)
