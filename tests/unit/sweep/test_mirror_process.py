"""W&B beside a launch: it may be absent or hang, and no run notices."""

import io
import os
import time
from pathlib import Path

import pytest
from fake_runs import FakePlan, launch
from rich.console import Console

from scaling.runs.store import SweepStore
from scaling.sweep.mirror import WandbOptions

_ABSENT = "raise ImportError('No module named wandb')"
_HANGING = """
import time
class Settings(dict): pass
def init(**options): time.sleep(600)
"""


@pytest.fixture
def fake_wandb(tmp_path: Path, store: SweepStore, monkeypatch: pytest.MonkeyPatch):
    def install(source: str) -> None:
        folder = tmp_path / "modules"
        folder.mkdir()
        (folder / "wandb.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}")

    return install


@pytest.mark.parametrize(
    ("source", "warning"),
    [
        (_ABSENT, "W&B mirror gave up (ImportError: No module named wandb); the local records"),
        (_HANGING, "W&B mirror was not through 0.5 s after the last run; the local records"),
    ],
)
def test_runs_do_not_notice_and_the_launch_ends_in_time(
    store: SweepStore, fake_wandb, source: str, warning: str
):
    fake_wandb(source)
    plans = [FakePlan(str(index)) for index in range(3)]
    out = io.StringIO()
    options = WandbOptions(project="p", entity="e", tags=["t"], finish_within_s=0.5)
    started = time.monotonic()
    summary = launch(store, plans, Console(file=out, width=1000), wandb=options)
    assert summary.exit_code == 0
    assert all(row.cost["wall_s"] < 1 for row in summary.rows)
    assert time.monotonic() - started < 8  # 0.5 s to finish, 2 s to end; the rest is start-up
    assert out.getvalue().count(warning) == 1
    command = f"wandb_mirror {store.path} --project p --entity e --tag t\n"
    assert command in out.getvalue()


def test_a_launch_mirrors_while_it_runs(store: SweepStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = io.StringIO()
    plans = [FakePlan("a"), FakePlan("b")]
    launch(store, plans, Console(file=out), wandb=WandbOptions(project="p"))
    assert "W&B" not in out.getvalue()
    assert len(list(store.path.glob("wandb/offline-run-*/*.wandb"))) == 2
