"""Which runs a worker is given together, and what becomes of the others when one of them fails."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FakePlan, launch, noted
from rich.console import Console

from scaling import budget
from scaling.activations.build import prepare
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.plan import RunPlan
from scaling.runs.store import SweepStore
from scaling.sweep.footprint import plan_shape
from scaling.sweep.groups import Group, Plan, each_alone
from scaling.sweep.packing import Packing, grouping_for, packed, together_bytes
from scaling.sweep.planner import make_plan
from scaling.sweep.pool import Worker
from scaling.sweep.preview import print_preview
from scaling.sweep.validate import validate
from tests.compose import tiny

GIB = 2**30


def all_together(plans: Sequence[Plan]) -> list[Group]:
    return [Group(tuple(plans), 10)] if plans else []


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What workers were given, in turn."""
    seen: list[list[str]] = []
    give = Worker.give

    def noting(worker: Worker, *folders: Any, **options: Any) -> None:
        seen.append([folder.run_id for folder in folders])
        give(worker, *folders, **options)

    monkeypatch.setattr(Worker, "give", noting)
    return seen


def run_all(store: SweepStore, plans: Sequence[FakePlan], **options: Any) -> dict[str, str]:
    launch(store, list(plans), grouping=all_together, workers=1, **options)
    return {folder.run_id: str(folder.status()) for folder in store.folders()}


def test_a_group_is_one_command_and_every_run_ends_by_itself(store: SweepStore, given) -> None:
    plans = [FakePlan("a"), FakePlan("b", misbehavior="raise"), FakePlan("c")]
    assert run_all(store, plans) == {"a": "done", "b": "failed", "c": "done"}
    assert given == [["a", "b", "c"]]
    assert run_all(store, plans) == dict.fromkeys("abc", "done")
    assert given[1:] == [["b"]]  # what is done is not given out again


def test_the_death_of_a_process_counts_for_the_run_that_was_on(store: SweepStore, given) -> None:
    plans = [FakePlan("a"), FakePlan("b", misbehavior="kill_always"), FakePlan("c"), FakePlan("d")]
    assert run_all(store, plans, retries=1) == {
        "a": "done",
        "b": "failed",
        "c": "done",
        "d": "done",
    }
    assert given == [["a", "b", "c", "d"], ["b"], ["c", "d"]]


def test_told_to_stop_by_others_the_rest_of_a_group_stays_together(store, given) -> None:
    plans = [FakePlan("a"), FakePlan("b", misbehavior="sigterm"), FakePlan("c")]
    assert run_all(store, plans, retries=0) == dict.fromkeys("abc", "done")
    assert given == [["a", "b", "c"], ["b", "c"]]
    assert store.folder("c").read_record().cost["attempts"] == 1


def test_groups_and_single_runs_share_memory(store: SweepStore) -> None:
    def grouping(plans: Sequence[Plan]) -> list[Group]:
        return [Group(tuple(plans[:2]), 60), *each_alone(plans[2:])]

    plans = [FakePlan(name, step_s=0.1, estimated_memory_bytes=50) for name in "abc"]
    launch(store, plans, grouping=grouping, workers=2, memory_bytes=100)
    starts = {run: float(at) for run, _, at in noted(store, "starts")}
    ends = {run: float(at) for run, _, at in noted(store, "ends")}
    assert ends["b"] <= starts["c"]


def test_parts_and_halves() -> None:
    plans = tuple(FakePlan(name, estimated_memory_bytes=3) for name in "abcde")
    group = Group(plans, 9)
    assert [half.run_ids for half in group.halves()] == [["a", "b", "c"], ["d", "e"]]
    assert group.part([]) == []
    (one,), (two,) = group.part(["b"]), group.part(["e", "b"])
    assert (one.run_ids, one.memory_bytes) == (["b"], 3)
    assert (two.run_ids, two.memory_bytes) == (["b", "e"], 9)
    assert one.halves() == [one]
    assert (group.estimated_s, group.duration, group.world_size) == (5.0, 5.0, 1)
    unknown = Group((plans[0], replace(plans[1], estimated_s=None)), 9)
    assert unknown.estimated_s is None


def test_packed_by_work_and_by_room() -> None:
    plans: list[Any] = [FakePlan(str(s), estimated_s=s) for s in (1.0, 2.0, 3.0, 4.0, 5.0, 9.0)]

    def loads(n_parts: int, room: int) -> list[float]:
        parts = packed(plans, n_parts, lambda part: len(part) <= room)
        assert sorted(p.run_id for part in parts for p in part) == [p.run_id for p in plans]
        return [sum(plan.estimated_s for plan in part) for part in parts]

    assert loads(2, 6) == [12.0, 12.0]
    assert loads(1, 6) == [24.0]
    assert loads(9, 6) == [9.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert len(loads(1, 2)) == 3
    assert len(loads(2, 0)) == 6  # what fits nowhere is alone


def plans_of(*settings: list[str]) -> list[RunPlan]:
    def planned(config: RunConfig) -> RunPlan:
        return make_plan(config, prepare(config.activations, Path(), progress=lambda _: None))

    return [planned(tiny("launcher.multiplex=true", *given)).with_estimate(1) for given in settings]


def test_by_feed_worker_and_memory() -> None:
    sizes = [
        [f"autoencoder.n_latents={n}", f"autoencoder.k={k}"] for n in (64, 128) for k in (2, 4)
    ]
    plans = plans_of(*sizes, ["train.seed=1"], ["mesh.latent=2"])

    def found(memory_bytes: int, workers: int = 1, live: bool = False) -> list[int]:
        stream = {"activations": {"stream": live}}
        given = [replace(plan, config=plan.config | stream) for plan in plans]
        packing = Packing(workers, memory_bytes, None)
        return [len(group.plans) for group in packing.groups(given)]

    assert found(64 * GIB) == [4, 1, 1]
    assert found(64 * GIB, workers=2) == [2, 2, 1, 1]
    assert found(64 * GIB, workers=2, live=True) == [4, 1, 1]  # a subject model each
    pair = together_bytes(plans[2:4])
    assert max(found(2 * pair, workers=2)) == 2
    assert found(pair // 2) == [1] * 6
    only_pairs = Packing(1, 64 * GIB, budget.together_bytes([plan_shape(p) for p in plans[:2]]))
    assert len(only_pairs.groups(plans)) > 3  # by the GPU's memory
    assert grouping_for(plans, 1)(plans)[0].run_ids != [plans[0].run_id]
    assert grouping_for([], 1)([]) == []
    without = replace(plans[0], config={"launcher": {"name": "local"}})
    assert len(grouping_for([without], 1)(plans)) == 6


def test_memory_of_a_group_counts_a_process_and_a_step_once() -> None:
    plans = plans_of(*[[f"autoencoder.k={k}"] for k in (2, 4, 8)])
    one, three = plans[0].estimated_memory_bytes, together_bytes(plans)
    assert together_bytes(plans[:1]) == one
    state = sum(budget.memory_parts(plan_shape(plans[0]))[part] for part in ("weights", "average"))
    assert one + 2 * state < three < one + 2 * (one - budget.PROCESS_BYTES)
    with_model = [
        replace(plan, estimated_memory_bytes=plan.estimated_memory_bytes + GIB) for plan in plans
    ]
    assert together_bytes(with_model) == three + GIB  # one subject model, not three
    on_gpu = [
        replace(plan, execution=replace(plan.execution, device="cuda"),
                estimated_memory_bytes=0) for plan in plans
    ]  # fmt: skip
    alone = budget.host_bytes(plan_shape(on_gpu[0]))
    assert alone <= together_bytes(on_gpu) < 3 * alone  # one context


def test_the_preview_says_what_goes_together() -> None:
    plans = plans_of(["autoencoder.k=2"], ["autoencoder.n_latents=32"], ["train.seed=1"])
    groups = Packing(1, 64 * GIB, None).groups(plans)
    out = io.StringIO()
    print_preview(plans, [], 1, Console(file=out, width=300), groups=groups)
    assert "2 runs by turns in one process (1 of n=64, 1 of n=32): " in out.getvalue()
    assert "1 run shares its batches with no other" in out.getvalue()
    plans = plans_of(["autoencoder=relu"], ["autoencoder=gated"], ["autoencoder=relu"])
    groups = [Group(tuple(plans), GIB)]
    print_preview(plans, [], 1, Console(file=out, width=300), groups=groups)
    assert "(2 of relu n=64, 1 of gated n=64): " in out.getvalue()
    out = io.StringIO()
    print_preview(plans, [], 1, Console(file=out, width=300))
    assert "by turns" not in out.getvalue()


def test_the_preview_lists_runs_by_size_and_then_by_penalty() -> None:
    penalties = ("0.3", "0.1", "0.2")
    plans = plans_of(*(["autoencoder=relu", f"autoencoder.penalty={p}"] for p in penalties))
    out = io.StringIO()
    print_preview(plans, [], 1, Console(file=out, width=300))
    assert re.findall(r"λ=(\S+)", out.getvalue()) == sorted(penalties)
    assert "at most: where a penalty decides, L0 = n is assumed" in out.getvalue()


def test_the_preview_tells_rows_apart_that_look_alike() -> None:
    seeds = plans_of(["autoencoder.k=2"], ["autoencoder.k=4"], ["autoencoder.k=4", "train.seed=1"])
    for plans, said in ((seeds, True), (seeds[:2], False)):
        out = io.StringIO()
        print_preview(plans, [], 1, Console(file=out, width=300))
        assert ("Also varied: train.seed=0,1\n" in out.getvalue()) == said
        assert ("Also varied" in out.getvalue()) == said


def test_the_preview_of_a_mixed_sweep_names_architectures() -> None:
    plans = plans_of(["autoencoder=relu"], ["autoencoder.k=2"])
    out = io.StringIO()
    print_preview(plans, [], 1, Console(file=out, width=300))
    words = [line.split() for line in out.getvalue().splitlines() if line.strip()]
    assert [w for w in words if len(w) == 1 and w[0].isalpha()] == [["relu"], ["topk"]]
    out = io.StringIO()
    print_preview(plans[:1], [], 1, Console(file=out, width=300))
    assert "relu" not in out.getvalue()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("launcher=slurm", "launcher=slurm"),
        ("launcher=deepspeed", "launcher=deepspeed"),
        ("mesh.latent=2", "mesh.dp=1 mesh.latent=2"),
        ("engine=deepspeed", "engine=deepspeed"),
        ("debug.profile=true", "debug.profile=true"),
    ],
)
def test_what_cannot_be_multiplexed_is_refused_by_name(override: str, words: str) -> None:
    validate(tiny("launcher.multiplex=true"), n_train=None)
    with pytest.raises(UserError) as error:
        validate(tiny(override, "launcher.multiplex=true"), n_train=None)
    assert f"launcher.multiplex=true with {words}" in str(error.value)
    assert "Use " in str(error.value)
