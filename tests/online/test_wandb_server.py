"""A sweep's way to a W&B server and back: the mirror, `wandb sync`, `wandb.Api`.

The clients are the real ones, over HTTP; see openwandb.py for what the server is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.runs.record import RunError, RunOutcome, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.lease import Lease
from tests.online.openwandb import ENTITY, KEY, Gateway, OpenWandb

pytestmark = pytest.mark.online

CONFIG = {"autoencoder": {"n_latents": 64, "k": 4}, "train": {"tokens": 500}}
RESULT = {
    **{"n_latents": 64, "k": 4, "tokens": 600, "normalized_mse": 0.25, "dead_fraction": None},
    **{"seed": 0, "eval_hash": "abc", "numerics_version": 1, "normalization": "unit_norm"},
}


def row(step: int) -> dict[str, Any]:
    """Nulls, whole numbers and digits that a float32 would lose."""
    speed = None if step == 1 else 50_000.123456789 + step
    return {
        **{"tokens": step * 100, "step": step, "train/normalized_mse": 1 / 3 / step},
        **{"perf/tokens_per_s": speed, "eval/l0": 4.0},
    }


def write_run(
    folder: RunFolder, steps: Sequence[int], status: Status, *, resume_at_step: int = 0
) -> None:
    folder.prepare({"title": f"title of {folder.run_id}", "config": CONFIG})
    lease = Lease.acquire(folder.path, timeout_s=60)
    assert lease is not None
    with lease:
        with folder.metrics_logger(lease, resume_at_step=resume_at_step) as logger:
            for step in steps:
                logger.log(row(step))
        cost = {"finished_at": f"attempt {lease.token}", "wall_s": 1.5, "host": "h"}
        cost |= {"mesh": [1, 2], "versions": {"torch": "2.13.0"}, "bit_exact": True}
        outcome = RunOutcome(status, RESULT if status is Status.done else {}, cost)
        record = folder.read_record().with_outcome(outcome)
        if status is Status.failed:
            record = replace(record, error=RunError("RuntimeError", "x"))
        folder.write_record(record, lease)


def call(home: Path, url: str, *command: str, mode: str = "online") -> str:
    """Run a client against the server; what it printed. HOME is not this machine's user's."""
    without = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = without | {
        **{"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "WANDB_MODE": mode, "HOME": str(home)},
        **{"WANDB_CONFIG_DIR": str(home / "config"), "WANDB_CACHE_DIR": str(home / "cache")},
    }
    answer = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=home
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def mirror(store: SweepStore, url: str, project: str, *, mode: str = "online") -> None:
    module = (sys.executable, "-m", "scaling.runs.wandb_mirror", str(store.path))
    target = ("--project", project, "--entity", ENTITY, "--tag", "t")
    call(store.path.parent, url, *module, *target, mode=mode)


def logged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what W&B adds."""
    return [{k: v for k, v in found.items() if not k.startswith("_")} for found in rows]


def values(config: dict[str, Any]) -> dict[str, Any]:
    return {key: entry["value"] for key, entry in config.items() if key != "_wandb"}


@pytest.fixture(scope="module")
def sent(door: Gateway, tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    """A finished and a failed run, mirrored online."""
    store = SweepStore(tmp_path_factory.mktemp("online") / "grid")
    write_run(store.folder("a" * 12), range(1, 7), Status.done)
    store.folder("a" * 12).evaluation_path.write_text('{"kl": 0.125}')
    write_run(store.folder("b" * 12), range(1, 5), Status.failed)
    mirror(store, door.url, "laws")
    return store


def test_the_mirror_sends_every_row_and_the_whole_record(server: OpenWandb, sent: SweepStore):
    for folder in sent.folders():
        rows = server.rows("laws", folder.run_id)
        assert logged(rows) == folder.metrics()
        assert [r["_step"] for r in rows] == [r["step"] for r in folder.metrics()]
    run = server.run("laws", "a" * 12)
    assert (run["display_name"], run["tags"]) == ("title of aaaaaaaaaaaa", ["t"])
    assert values(run["config"]) == CONFIG
    # This server drops nulls from a summary.
    known = {key: value for key, value in RESULT.items() if value is not None}
    assert run["summary"].items() >= {**known, "status": "done", "wall_s": 1.5, "host": "h"}.items()
    assert run["summary"]["mesh"] == "[1, 2]"
    assert json.loads(run["summary"]["versions"]) == {"torch": "2.13.0"}
    assert run["summary"]["evaluation/kl"] == 0.125
    assert server.run("laws", "b" * 12)["summary"]["status"] == "failed"


def test_a_second_call_sends_nothing_and_a_resumed_run_only_what_is_new(
    server: OpenWandb, door: Gateway, tmp_path: Path
):
    store = SweepStore(tmp_path / "again")
    folder = store.folder("c" * 12)
    write_run(folder, range(1, 5), Status.failed)
    mirror(store, door.url, "again")
    mirror(store, door.url, "again")
    assert [r["step"] for r in server.rows("again", folder.run_id)] == [1, 2, 3, 4]
    write_run(folder, (3, 4, 5, 6), Status.done, resume_at_step=2)
    mirror(store, door.url, "again")
    assert logged(server.rows("again", folder.run_id)) == folder.metrics()
    assert server.run("again", folder.run_id)["summary"]["status"] == "done"


def test_an_offline_sweep_arrives_by_wandb_sync(server: OpenWandb, door: Gateway, tmp_path: Path):
    store = SweepStore(tmp_path / "offline")
    folder = store.folder("d" * 12)
    write_run(folder, range(1, 7), Status.done)
    mirror(store, door.url, "synced", mode="offline")
    assert server.runs("synced") == []
    [written] = store.path.glob("wandb/offline-run-*")
    client = Path(sys.executable).with_name("wandb")
    call(tmp_path, door.url, str(client), "sync", str(written))
    assert logged(server.rows("synced", folder.run_id)) == folder.metrics()
    run = server.run("synced", folder.run_id)
    assert values(run["config"]) == CONFIG
    assert run["summary"]["normalized_mse"] == RESULT["normalized_mse"]


_READ = """
import json, sys, wandb
runs = wandb.Api(timeout=20).runs(sys.argv[1], filters={"group": "grid"}, per_page=1)
print(json.dumps([
    {"id": run.id, "name": run.name, "group": run.group, "tags": run.tags, "state": run.state,
     "config": run.config, "summary": dict(run.summary), "rows": list(run.scan_history())}
    for run in runs
]))
"""


def test_the_api_reads_back_what_the_mirror_sent(door: Gateway, sent: SweepStore, tmp_path: Path):
    printed = call(tmp_path, door.url, sys.executable, "-c", _READ, f"{ENTITY}/laws")
    first, second = json.loads(printed.splitlines()[-1])
    assert [run["id"] for run in (first, second)] == ["a" * 12, "b" * 12]
    assert (first["name"], first["group"], first["tags"]) == (
        "title of aaaaaaaaaaaa",
        "grid",
        ["t"],
    )
    assert first["config"] == CONFIG
    assert first["summary"]["normalized_mse"] == RESULT["normalized_mse"]
    for run in (first, second):
        assert logged(run["rows"]) == sent.folder(run["id"]).metrics()


_LOAD = """
import json, sys
from analysis.records import load_curves, load_runs
source, columns = sys.argv[1], sys.argv[2].split(",")
frame = load_runs(source, allow=("rejected",)).sort_values("run_id")
curves = load_curves(source).sort_values(["run_id", "step"])
print(frame[columns].to_json(orient="records", double_precision=15))
print(curves[["run_id", *sys.argv[3].split(",")]].to_json(orient="records", double_precision=15))
"""
_COLUMNS = (
    *("run_id", "sweep", "status", "kl", "mesh", "versions", "wall_s"),
    *(name for name in RESULT if name != "dead_fraction"),
)


def test_analysis_loads_the_project_as_it_loads_the_folder(
    door: Gateway, sent: SweepStore, tmp_path: Path
):
    def loaded(source: str) -> list[list[dict[str, Any]]]:
        names = (",".join(_COLUMNS), ",".join(row(2)))
        printed = call(tmp_path, door.url, sys.executable, "-c", _LOAD, source, *names)
        return [json.loads(line) for line in printed.splitlines()[-2:]]

    door.busy_next = 1
    runs, curves = loaded(f"wandb:{ENTITY}/laws/grid")
    local_runs, local_curves = loaded(str(sent.path))
    done, failed = runs
    assert done == local_runs[0]
    # Of a run without a result W&B may know more than its record: the configuration.
    assert [failed[name] for name in ("run_id", "sweep", "status")] == ["b" * 12, "grid", "failed"]
    assert curves == local_curves
    assert len(curves) == 10
    asked = len(door.asked)
    assert loaded(f"wandb:{ENTITY}/laws/grid") == [runs, curves]
    assert "HistoryPage" in door.asked[:asked]
    # What is finished is on the disk: the second time only the failed run is asked for again.
    assert len(door.asked) - asked < asked
