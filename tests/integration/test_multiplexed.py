"""Runs that one process trains by turns end with the bits they have alone, come what may."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from scaling import runner
from scaling.activations.build import prepare
from scaling.activations.planted import PlantedSource
from scaling.errors import UserError
from scaling.feed import feed_of
from scaling.multiplex import Runners, take_up_all
from scaling.plan import RunPlan
from scaling.runs.record import Record, Status
from scaling.runs.store import RunFolder, SweepStore
from scaling.storage.lease import Lease
from scaling.sweep.launch import launch
from scaling.sweep.planner import make_plan
from scaling.train.checkpoint import Checkpoints
from scaling.train.fused_engine import FusedEngine
from scaling.train.run import Attempt
from scaling.train.torch_engine import TorchEngine
from tests.compose import TINY, composed, tiny

OFTEN = [
    "checkpoint.every_tokens=2_048",
    "logger.every_tokens=512",
    "activations.n_true=48",
    "activations.k_true=4",
    "autoencoder.b_pre_init=zero",
]
MIXED = {
    "small": ["autoencoder.n_latents=32", "autoencoder.k=2"],
    "wide": ["autoencoder.n_latents=96", "autoencoder.k=8", "train.lr=3e-3"],
    "other engine": ["engine=torch", "train.clip_norm=1.0", "train.ema_decay=0"],
    "dense code": ["autoencoder=relu", "autoencoder.penalty=0.01"],
    "short": ["train.tokens=5_120", "train.on_bad_loss=skip"],
}
"""What runs of one feed may differ in: size, k, rate, engine, clipping, architecture, steps."""
DIVERGES = ["train.lr=1e18"]


class Channel:
    """A worker's parent, which may wish it to stop."""

    def __init__(self, stop: Callable[[], bool] = lambda: False) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop = self
        self.is_set = stop

    def send(self, **event: Any) -> None:
        self.events.append(event)

    def ends(self) -> dict[str, str]:
        """By run, in the order in which they ended."""
        return {
            event["run_id"]: event.get("status", event["event"])
            for event in self.events
            if event["event"] in ("finished", "held")
        }


@cache
def plan_of(*overrides: str) -> RunPlan:
    config = tiny(*OFTEN, *overrides)
    return make_plan(config, prepare(config.activations, Path(), progress=lambda _: None))


def planned(runs_dir: Path, *overrides: str) -> RunFolder:
    plan = plan_of(*overrides)
    folder = SweepStore(runs_dir).folder(plan.run_id)
    folder.prepare(plan.to_json())
    return folder


def taken_up(folders: list[RunFolder], channel: Channel | None = None) -> Channel:
    channel = channel or Channel()
    runners = Runners(runner.run, runner.together)
    take_up_all(folders, {"lease_timeout_s": 60.0}, runners, channel)  # type: ignore[arg-type]
    return channel


def alone(folder: RunFolder) -> Record:
    taken_up([folder])
    record = folder.read_record()
    assert record.cost["multiplexed"] == 1
    return record


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what a clock wrote."""
    return [
        {key: value for key, value in row.items() if not key.startswith("perf/")}
        for row in folder.metrics()
    ]


def weights(folder: RunFolder) -> bytes:
    return (folder.path / "weights" / "rank_00000.safetensors").read_bytes()


def assert_same(found: RunFolder, expected: RunFolder) -> None:
    assert found.run_id == expected.run_id
    assert found.read_record().status is expected.read_record().status
    assert found.read_record().result == expected.read_record().result
    assert rows(found) == rows(expected)
    if found.status() is Status.done:
        assert weights(found) == weights(expected)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often the batch of each step was made."""
    made: Counter[int] = Counter()
    original = PlantedSource.train_batch

    def counted(self: PlantedSource, *, step: int, **order: Any) -> Tensor:
        made[step] += 1
        return original(self, step=step, **order)

    monkeypatch.setattr(PlantedSource, "train_batch", counted)
    return made


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Every run by itself."""
    folders = {
        name: planned(tmp_path_factory.mktemp("solo"), *overrides)
        for name, overrides in {**MIXED, "diverges": DIVERGES}.items()
    }
    for folder in folders.values():
        alone(folder)
    return folders


def planned_all(runs_dir: Path) -> dict[str, RunFolder]:
    settings = {**MIXED, "diverges": DIVERGES}
    return {name: planned(runs_dir, *overrides) for name, overrides in settings.items()}


def test_mixed_runs_end_with_the_bits_they_have_alone(
    tmp_path: Path, solo: dict[str, RunFolder], reads: Counter[int]
) -> None:
    folders = planned_all(tmp_path)
    started_s = time.perf_counter()
    ends = taken_up(list(folders.values())).ends()
    elapsed_s = time.perf_counter() - started_s
    for name, folder in folders.items():
        assert_same(folder, solo[name])
    assert set(ends.values()) == {"done", "diverged"}
    assert list(ends)[:2] == [folders["diverges"].run_id, folders["short"].run_id]
    assert set(reads.values()) == {1}  # 40 steps, each read once for all six
    assert len(reads) == 40
    records = [folder.read_record() for folder in folders.values()]
    assert {record.cost["multiplexed"] for record in records} == {6}
    finished = [record for record in records if record.status is Status.done]
    assert [record.warnings for record in finished] == [[]] * 5  # the schema has all their fields
    for record in records:
        assert 0 < record.cost["train_s"] < record.cost["wall_s"]
    assert sum(record.cost["wall_s"] for record in records) <= elapsed_s  # each its own


def test_one_that_raises_or_is_held_ends_alone(
    tmp_path: Path, solo: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = planned_all(tmp_path)
    save, fails = Checkpoints.save, folders["small"].run_id

    def full(self: Checkpoints, step: int, *rest: Any) -> None:
        if self.run_id == fails and step > 8:
            raise OSError("no space for this one")
        save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", full)
    lease = Lease.acquire(folders["wide"].path, timeout_s=60)
    assert lease is not None
    with lease:
        ends = taken_up(list(folders.values())).ends()
    assert ends[fails] == "failed"
    assert ends[folders["wide"].run_id] == "held"
    error = folders["small"].read_record().error
    assert error is not None
    assert (error.type, error.message) == ("OSError", "no space for this one")
    for name in ("other engine", "short", "diverges"):
        assert_same(folders[name], solo[name])
    monkeypatch.undo()
    # They go on together from different steps, the one meeting the other.
    taken_up([folders["small"], folders["wide"]])
    assert_same(folders["small"], solo["small"])
    assert_same(folders["wide"], solo["wide"])
    assert folders["small"].read_record().cost["resumed_at_step"] == 8
    assert folders["wide"].read_record().cost["resumed_at_step"] == 0


def test_a_plan_that_was_damaged_fails_its_own_run_alone(
    tmp_path: Path, solo: dict[str, RunFolder]
) -> None:
    damaged, sound = planned_all(tmp_path)["short"], planned_all(tmp_path)["small"]
    plan = damaged.read_plan() | {"source": None}
    (damaged.path / "plan.json").write_text(json.dumps(plan))
    ends = taken_up([damaged, sound]).ends()
    assert ends == {damaged.run_id: "failed", sound.run_id: "done"}
    assert_same(sound, solo["small"])


def test_what_has_ended_is_out_of_memory_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the collector comes by: until then the next run would be beside it."""
    attempts: list[weakref.ref[Attempt]] = []
    begin = Attempt.course

    def noted(self: Attempt) -> Any:
        attempts.append(weakref.ref(self))
        return begin(self)

    monkeypatch.setattr(Attempt, "course", noted)
    by_rule = ["train.stop.fall=1e-6", "train.stop.after_tokens=1_280", "train.decay_fraction=0"]
    folders = [planned(tmp_path, *given) for given in (by_rule, MIXED["wide"], DIVERGES)]
    gc.disable()
    try:
        ends = taken_up(folders).ends()
        assert [attempt() for attempt in attempts] == [None] * 3
    finally:
        gc.enable()
    assert sorted(ends.values()) == ["diverged", "done", "done"]


def test_told_to_stop_all_checkpoint_and_go_on_later(
    tmp_path: Path, solo: dict[str, RunFolder], reads: Counter[int]
) -> None:
    folders = planned_all(tmp_path)
    ends = taken_up(list(folders.values()), Channel(lambda: reads[11] > 0)).ends()
    assert Counter(ends.values()) == {"preempted": 5, "diverged": 1}
    stopped_at = [folder.read_record().result["steps"] for folder in folders.values()]
    assert stopped_at == [12, 12, 12, 12, 12, 2]  # the last had diverged
    taken_up([folders["wide"]], Channel(lambda: reads[16] > 0))  # now ahead of the others
    reads.clear()
    taken_up(list(folders.values()))
    for name, folder in folders.items():
        assert_same(folder, solo[name])
    resumed_at = [folder.read_record().cost["resumed_at_step"] for folder in folders.values()]
    assert resumed_at == [12, 17, 12, 12, 12, 0]
    assert reads == Counter(range(12, 40))  # each once, those that "wide" had done too


def test_a_batch_that_cannot_be_read_fails_all_that_asked_for_it(
    tmp_path: Path, solo: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = planned_all(tmp_path)
    original = PlantedSource.train_batch

    def failing(self: PlantedSource, *, step: int, **order: Any) -> Tensor:
        if step == 25:
            raise UserError("shard 3 is gone")
        return original(self, step=step, **order)

    with monkeypatch.context() as broken:
        broken.setattr(PlantedSource, "train_batch", failing)
        ends = taken_up(list(folders.values())).ends()
    assert Counter(ends.values()) == {"failed": 4, "done": 1, "diverged": 1}  # "short" had ended
    error = folders["wide"].read_record().error
    assert error is not None
    assert (error.type, error.message) == ("UserError", "shard 3 is gone")
    taken_up(list(folders.values()))
    for name, folder in folders.items():
        assert_same(folder, solo[name])


def test_runs_of_other_batches_are_not_mixed(tmp_path: Path, reads: Counter[int]) -> None:
    overrides = [[], ["train.seed=1"], ["train.batch_tokens=128"], ["autoencoder.k=3"]]
    folders = [planned(tmp_path, *given) for given in overrides]
    broken = planned(tmp_path, "autoencoder.k=5")
    broken.plan_path.write_text(broken.plan_path.read_text().replace('"seed": 0', '"seed": 7'))
    ends = taken_up([*folders, broken]).ends()
    assert ends.pop(broken.run_id) == "failed"
    assert set(ends.values()) == {"done"}
    found = [folder.read_record().cost["multiplexed"] for folder in folders]
    assert found == [2, 1, 1, 2]
    assert reads[0] == 3


@pytest.mark.parametrize(
    ("override", "shares"),
    [
        ("autoencoder.n_latents=128", True),
        ("train.lr=1e-2", True),
        ("train.tokens=20_480", True),
        ("train.seed=1", False),
        ("train.batch_tokens=128", False),
        ("train.shuffle_block=16", False),
        ("numerics.precision=float64", False),
        ("activations.seed=1", False),
        ("activations.eval_tokens=256", False),
        ("mesh.latent=2", False),
    ],
)
def test_what_runs_must_have_in_common(override: str, shares: bool) -> None:
    plans = [plan_of(), plan_of(override)]
    assert (feed_of(plans[0]) == feed_of(plans[1])) is shares
    assert feed_of(plans[0]) is not None


def test_engines_leave_the_batch_as_it_is(
    tmp_path: Path, solo: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that did not would be seen, in what the others of its process come to."""
    changed: Counter[tuple[str, bool]] = Counter()
    spoils = False

    def watch(engine: type[FusedEngine] | type[TorchEngine]) -> None:
        step: Callable[..., Any] = engine.step

        def watched(self: Any, batch_BD: Tensor, *rest: Any, **options: Any) -> Any:
            before_BD = batch_BD.clone()
            stats = step(self, batch_BD, *rest, **options)
            if spoils:
                batch_BD.mul_(1.01)
            changed[engine.__name__, not torch.equal(batch_BD, before_BD)] += 1
            return stats

        monkeypatch.setattr(engine, "step", watched)

    watch(FusedEngine)
    watch(TorchEngine)
    names = ("small", "wide", "other engine")
    taken_up([planned(tmp_path / "sound", *MIXED[name]) for name in names])
    assert set(changed) == {("FusedEngine", False), ("TorchEngine", False)}
    spoils = True
    folders = [planned(tmp_path / "spoiled", *MIXED[name]) for name in names]
    taken_up(folders)
    with pytest.raises(AssertionError):
        assert_same(folders[1], solo["wide"])


def test_a_launch_whose_worker_is_killed_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through launch and worker processes: the group is killed once, and all its runs resume."""
    monkeypatch.chdir(tmp_path)
    points = [
        composed(*TINY, *OFTEN, "train.tokens=40_960", f"autoencoder.k={k}",
                 "launcher.workers=1", "launcher.multiplex=true")
        for k in (2, 4, 8)
    ]  # fmt: skip
    store, ended = SweepStore(Path("runs/default")), threading.Event()

    def kill() -> None:
        while len(list(store.path.glob("*/checkpoints/step_*/manifest.json"))) < len(points):
            if ended.wait(0.01):
                return
        lease = store.folders()[0].holder()
        assert lease is not None
        os.kill(lease["pid"], signal.SIGKILL)

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    out = io.StringIO()
    assert launch(points, Console(file=out, width=150)) == 0, out.getvalue()
    ended.set()
    watcher.join()
    records = [folder.read_record() for folder in store.folders()]
    assert [record.status for record in records] == [Status.done] * 3
    assert all(record.cost["attempts"] == 2 for record in records)
    assert all(record.cost["resumed_at_step"] > 0 for record in records)
    assert sorted(record.cost["multiplexed"] for record in records) == [1, 2, 2]  # in two halves
    for folder in store.folders():
        plan = folder.read_plan()
        again = SweepStore(tmp_path / "alone").folder(folder.run_id)
        again.prepare(plan)
        alone(again)
        assert_same(folder, again)
