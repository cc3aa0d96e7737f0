"""Which runs start when: by the slots that their processes take."""

from __future__ import annotations

import pytest
from fake_runs import FakePlan, launch, noted

from scaling.errors import UserError
from scaling.runs.store import SweepStore
from scaling.sweep import execution
from scaling.sweep.estimate import makespan_s
from scaling.sweep.pool import Worker
from scaling.sweep.slots import Slots
from tests.compose import tiny


def test_ranks_take_slots_and_give_them_back() -> None:
    slots = Slots(4)
    assert slots.take("a", 2) is None
    assert slots.fit(2)
    assert not slots.fit(3)
    slots.take("b", 2)
    assert not slots.fit(1)
    slots.give_back("a")
    slots.give_back("a")
    assert slots.fit(2)
    assert not slots.fit(3)


def test_on_cores_a_run_larger_than_the_machine_goes_alone() -> None:
    slots = Slots(2)
    slots.take("small", 1)
    assert not slots.fit(4)
    slots.give_back("small")
    assert slots.fit(4)
    slots.take("large", 4)
    assert not slots.fit(1)
    slots.give_back("large")
    assert slots.fit(2)


def test_gpus_are_given_by_run_and_never_twice_to_one() -> None:
    slots = Slots(4, ["0", "1", "2", "3"])
    assert slots.take("a", 1) == "0"
    assert slots.take("b", 2) == "1,2"
    assert not slots.fit(2)
    slots.give_back("a")
    assert slots.take("c", 2) == "0,3"
    assert not slots.fit(1)
    shared = Slots(4, ["0", "1"])  # launcher.workers=4 on two GPUs
    assert not shared.fit(3)
    assert [shared.take(run, 1) for run in "abcd"] == ["0", "1", "0", "1"]


def _spans(store: SweepStore) -> dict[str, tuple[float, float]]:
    starts = {run: float(at) for run, _, at in noted(store, "starts")}
    ends = {run: float(at) for run, _, at in noted(store, "ends")}
    return {run: (starts[run], ends[run]) for run in starts}


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def test_what_fits_runs_beside_the_longest(store: SweepStore) -> None:
    plans = [
        FakePlan("long", world_size=2, step_s=0.4, estimated_s=9, meets="slim"),
        FakePlan("wide", world_size=2, estimated_s=8),  # does not fit beside it
        FakePlan("slim", world_size=1, estimated_s=1, meets="long"),
    ]
    assert launch(store, plans, workers=3, slots=3).exit_code == 0  # long and slim met
    spans = _spans(store)
    assert not _overlap(spans["long"], spans["wide"])


def test_a_run_with_more_ranks_than_slots_runs_alone(store: SweepStore) -> None:
    plans = [
        FakePlan("huge", world_size=8, step_s=0.2, estimated_s=5),
        FakePlan("a"),
        FakePlan("b"),
    ]
    assert launch(store, plans, workers=2, slots=2).exit_code == 0
    spans = _spans(store)
    assert not any(_overlap(spans["huge"], spans[run]) for run in "ab")


def test_slots_of_a_killed_run_are_free_again(store: SweepStore) -> None:
    plans = [FakePlan("a", world_size=2, misbehavior="kill"), FakePlan("b", world_size=2)]
    assert launch(store, plans, workers=2, slots=2, retries=1).exit_code == 0


def test_workers_see_the_gpus_of_their_run(
    store: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, str | None] = {}
    give = Worker.give

    def noting(worker: Worker, folder, **options) -> None:
        given[folder.run_id] = worker.devices
        give(worker, folder, **options)

    monkeypatch.setattr(Worker, "give", noting)
    plans = [
        FakePlan("pair", world_size=2, estimated_s=9),
        FakePlan("one", estimated_s=2, step_s=0.2),
        FakePlan("two", estimated_s=1),
    ]
    assert launch(store, plans, workers=2, slots=2, devices=["5", "6"]).exit_code == 0
    assert given == {"pair": "5,6", "one": "5", "two": "6"}


def test_the_time_of_a_sweep_counts_slots() -> None:
    plans = [FakePlan("a", world_size=2, estimated_s=4), FakePlan("b", estimated_s=3),
             FakePlan("c", estimated_s=3)]  # fmt: skip
    assert makespan_s(plans, 2, 2) == 7  # type: ignore[arg-type]
    assert makespan_s(plans, 3, 4) == 4  # type: ignore[arg-type]
    assert makespan_s(plans, 1, 4) == 10  # type: ignore[arg-type]
    assert makespan_s([], 1) == 0


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.torch.cuda, "device_count", lambda: 2)
    execution._check_gpus(tiny("mesh.latent=2"), "cuda")
    execution._check_gpus(tiny("mesh.latent=4"), "cpu")
    with pytest.raises(UserError, match=r"mesh\.dp=1 mesh\.latent=4 needs 4 GPUs.*has 2\. Lower"):
        execution._check_gpus(tiny("mesh.latent=4"), "cuda")
