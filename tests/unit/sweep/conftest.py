import os
from pathlib import Path

import pytest

from scaling.runs.store import SweepStore

_REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepStore:
    """An empty sweep, and worker processes that find the fake runner."""
    paths = [str(Path(__file__).parent), str(_REPOSITORY), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return SweepStore(tmp_path / "runs" / "fake")
