"""Bad losses: what is refused, what ends a run, and that a resume judges alike."""

from __future__ import annotations

import math
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import pytest
import torch

from scaling.plan import ObservePlan, TrainPlan
from scaling.train.course import OwnTime, alone, on_own_time
from scaling.train.engine import Accept, StepStats
from scaling.train.guard import JUDGED_FROM, MAX_SKIPPED_IN_A_ROW, REMEMBERED, LossGuard
from scaling.train.loop import Ending, Observers, Row, fit

STEPS = 40


def train_plan(**changes: Any) -> TrainPlan:
    values: dict[str, Any] = {
        "steps": STEPS, "batch_tokens": 1, "lr": 1.0, "warmup_tokens": 0, "decay_fraction": 0.0,
        "adam_beta1": 0.9, "adam_beta2": 0.9, "adam_eps": 1e-8, "clip_norm": None,
        "ema_decay": 0.0, "seed": 0, "shuffle_block": 1,
    }  # fmt: skip
    return TrainPlan(**values | changes)


class ScriptedEngine:
    """Its losses are written down before; notes which steps changed the weights."""

    def __init__(self, losses: list[float]) -> None:
        self.losses, self.updated = losses, []
        self.at = 0

    def step(
        self, batch_BD: object, lr: float, *, measure: bool = False, accept: Accept | None = None
    ) -> StepStats:
        self.at += 1
        loss = self.losses[self.at - 1]
        skipped = accept is not None and not accept(loss)
        if not skipped:
            self.updated.append(self.at)
        value = torch.tensor(loss)
        return StepStats(value, value, value, 0.0, None, skipped)


def run_loop(losses: list[float], **changes: Any) -> tuple[Ending, ScriptedEngine, list[Row], Any]:
    train, engine, rows = train_plan(steps=len(losses), **changes), ScriptedEngine(losses), []
    observe = ObservePlan(
        log_every_steps=10, eval_every_steps=None, checkpoint_every_steps=1000,
        keep_checkpoints=1, eval_batch_tokens=1, profile=False,
    )  # fmt: skip
    observers = Observers(
        row=rows.append, checkpoint=lambda _: None, evaluation=dict, stop=lambda: False,
        profiled_step=lambda _: nullcontext(), utilization=lambda _: 0.0, seconds=perf_counter,
    )  # fmt: skip
    guard = LossGuard.of(train)
    course = on_own_time(fit(engine, train, observe, observers, guard=guard), OwnTime())  # type: ignore[arg-type]
    ending = alone(course, lambda _: torch.empty(0))
    return ending, engine, rows, guard


def losses(**bad: float) -> list[float]:
    """1.0 at each step, but for e.g. at_7=nan."""
    made = [1.0] * STEPS
    for name, value in bad.items():
        made[int(name.removeprefix("at_")) - 1] = value
    return made


def test_by_default_only_logged_losses_are_looked_at() -> None:
    assert run_loop(losses(at_7=math.nan))[0] is Ending.completed
    ending, engine, rows, guard = run_loop(losses(at_20=math.nan))
    assert (ending, engine.at, guard) == (Ending.diverged, 20, None)
    assert rows[-1]["step"] == 20
    assert "train/skipped_steps" not in rows[0]


@pytest.mark.parametrize("bad", [3.1, math.nan, math.inf])
def test_a_spike_ends_the_run_before_it_reaches_the_weights(bad: float) -> None:
    ending, engine, rows, guard = run_loop(losses(at_17=bad), spike_factor=3.0)
    assert ending is Ending.diverged
    assert engine.updated == list(range(1, 17))
    assert rows[-1]["step"] == 17
    (warning,) = guard.warnings
    assert "step 17" in warning
    if math.isfinite(bad):
        assert warning == "loss spike at step 17: 3.1, median 1"


def test_what_is_no_spike_passes() -> None:
    ending, engine, _, guard = run_loop(losses(at_17=3.0, at_2=50.0), spike_factor=3.0)
    assert ending is Ending.completed
    assert len(engine.updated) == STEPS
    assert guard.warnings == []
    assert JUDGED_FROM > 2


def test_skipped_steps_are_counted_and_the_run_goes_on() -> None:
    bad = losses(at_12=math.nan, at_13=9.0, at_31=math.inf)
    ending, engine, rows, guard = run_loop(bad, on_bad_loss="skip", spike_factor=3.0)
    assert ending is Ending.completed
    assert set(range(1, STEPS + 1)) - set(engine.updated) == {12, 13, 31}
    assert [row["train/skipped_steps"] for row in rows] == [0, 2, 2, 3]
    assert guard.warnings == ["skipped_steps: 3 (bad losses)"]


def test_without_a_factor_only_what_is_not_finite_is_skipped() -> None:
    _, engine, _, _ = run_loop(losses(at_15=1e9, at_16=math.nan), on_bad_loss="skip")
    assert set(range(1, STEPS + 1)) - set(engine.updated) == {16}


def test_weights_that_give_no_good_loss_any_more_have_diverged() -> None:
    bad = [1.0] * 20 + [math.nan] * (MAX_SKIPPED_IN_A_ROW + 5)
    ending, engine, _, guard = run_loop(bad, on_bad_loss="skip")
    assert (ending, engine.at) == (Ending.diverged, 20 + MAX_SKIPPED_IN_A_ROW)
    assert "in a row" in guard.warnings[-1]


def test_a_resumed_guard_judges_as_the_first_would_have() -> None:
    def judged(guard: LossGuard, steps: range) -> list[bool]:
        return [guard.accepts(step, 1.0 + (step % 7) ** 2 / 10) for step in steps]

    straight, first, second, forgetful = (LossGuard(skips=True, spike_factor=2) for _ in range(4))
    expected = judged(straight, range(1, 3 * REMEMBERED))
    found = judged(first, range(1, 150))
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    found += judged(second, range(150, 3 * REMEMBERED))
    assert found == expected
    assert not all(expected)
    assert second.n_skipped == straight.n_skipped
    assert judged(forgetful, range(150, 3 * REMEMBERED)) != expected[149:]  # it can fail
