"""Opening what exists is cheap: neither torch nor transformers is imported to describe it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scaling.activations.build import describe, open_source, prepare
from scaling.activations.source import SourceSpec
from scaling.activations.store import StoreSource
from scaling.config import ActivationsConfig, StoreConfig
from scaling.errors import UserError
from tests.unit.activations.stores import extend_store

PREPARE = """
import sys
from pathlib import Path
from scaling.activations.build import prepare
from scaling.config import StoreConfig
prepare(StoreConfig(path=sys.argv[1]), Path("."), progress=lambda progress: None)
print(sorted({"torch", "transformers", "scaling.activations"} & set(sys.modules)))
"""


def test_preparing_a_finished_store_imports_no_model_code(tmp_path: Path) -> None:
    extend_store(tmp_path / "store", n_train=350, n_eval=150)
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "store")]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "['scaling.activations']"


def test_store_by_folder_is_described_prepared_and_opened(tmp_path: Path) -> None:
    extend_store(tmp_path / "store", n_train=350, n_eval=150)
    config = StoreConfig(path=str(tmp_path / "store"), max_tokens=300)
    description = describe(config, tmp_path)
    spec = prepare(config, tmp_path, progress=lambda progress: None)
    assert description.ready
    assert description.spec == spec
    assert (spec.n_train, spec.n_eval) == (300, 150)
    assert isinstance(open_source(spec), StoreSource)


def test_unknown_sources_are_refused(tmp_path: Path) -> None:
    config = ActivationsConfig()
    with pytest.raises(UserError, match=r"activations=planted, embedded"):
        describe(config, tmp_path)
    spec = SourceSpec("tape", "0" * 64, "0" * 64, d_model=4, n_train=1, n_eval=1)
    with pytest.raises(UserError, match="'tape'"):
        open_source(spec)
