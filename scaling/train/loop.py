"""The training loop. It sees batches, an engine and a clock; no gradient, no file format.

It asks for each batch and is sent it (`scaling.train.course` says why): a generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum, auto
from functools import partial

from scaling.plan import ObservePlan, TrainPlan
from scaling.schedule import lr_at
from scaling.train.course import Course
from scaling.train.engine import Engine, StepStats
from scaling.train.guard import LossGuard
from scaling.train.stopping import StopRule

Row = dict[str, float | int | None]


class Ending(StrEnum):
    completed = auto()
    diverged = auto()
    stopped = auto()
    """Asked to stop; the state is checkpointed."""


@dataclass(frozen=True, kw_only=True)
class Observers:
    """What the loop tells, and to whom."""

    row: Callable[[Row], None]
    """One row of metrics."""
    checkpoint: Callable[[int], None]
    """Save the state after that many steps."""
    evaluation: Callable[[], Row]
    """Held-out metrics of the present weights."""
    stop: Callable[[], bool]
    """Whether the run should end early, asked after each step."""
    profiled_step: Callable[[int], AbstractContextManager[object]]
    utilization: Callable[[float], float]
    """perf/mfu for a rate in tokens per second."""
    seconds: Callable[[], float]
    """The run's time so far."""


def fit(
    engine: Engine,
    train: TrainPlan,
    observe: ObservePlan,
    observers: Observers,
    *,
    first_step: int = 0,
    guard: LossGuard | None = None,
    rule: StopRule | None = None,
) -> Course[Ending]:
    """Train from `first_step` to the last, or to where `rule` ends it; returns why it ended.

    Yields each step whose batch it wants, to be sent it; it does not change its vectors.
    """
    pace = Pace(train.batch_tokens, observers.seconds)
    for step in range(first_step, train.steps):
        done = step + 1
        evaluates = _evaluates(observe, train, done) or (rule is not None and rule.evaluates(done))
        logs = done % observe.log_every_steps == 0 or evaluates
        batch_BD = (yield step).vectors_BD
        with observers.profiled_step(step):
            accept = None if guard is None else partial(guard.accepts, done)
            stats = engine.step(batch_BD, _lr(train, step), measure=logs, accept=accept)
        diverged = _has_diverged(stats, guard, logs=logs)
        if logs or diverged:
            row = _row(train, done, stats, guard) | _perf(pace.tokens_per_s(done), observers)
            if diverged:
                observers.row(row)
                return Ending.diverged
            scores = observers.evaluation() if evaluates else {}
            observers.row(row | scores)
            if not _all_finite(scores):
                return Ending.diverged
            if rule is not None and rule.ends(done, scores):
                break
        if done == train.steps:
            break
        if observers.stop():
            observers.checkpoint(done)
            return Ending.stopped
        if done % observe.checkpoint_every_steps == 0:
            observers.checkpoint(done)
    return Ending.completed


def _has_diverged(stats: StepStats, guard: LossGuard | None, *, logs: bool) -> bool:
    """Without a guard a loss is looked at when it is logged: reading it waits for the device."""
    if guard is not None:
        return guard.ended_by is not None
    return logs and not math.isfinite(float(stats.loss))


def _all_finite(row: Row) -> bool:
    return all(math.isfinite(value) for value in row.values() if value is not None)


def _evaluates(observe: ObservePlan, train: TrainPlan, done: int) -> bool:
    every = observe.eval_every_steps
    return done == train.steps or (every is not None and done % every == 0)


class Pace:
    """Tokens per second since the previous reading."""

    def __init__(self, batch_tokens: int, seconds: Callable[[], float]) -> None:
        self.batch_tokens = batch_tokens
        self.seconds = seconds
        self.at_s = seconds()
        self.at_step: int | None = None

    def tokens_per_s(self, step: int) -> float | None:
        """None at the first reading, whose steps include one-time costs."""
        now_s = self.seconds()
        steps = None if self.at_step is None else step - self.at_step
        elapsed_s, self.at_s, self.at_step = now_s - self.at_s, now_s, step
        return steps * self.batch_tokens / elapsed_s if steps else None


def _lr(train: TrainPlan, step: int) -> float:
    return lr_at(
        step * train.batch_tokens,
        peak=train.lr,
        total_tokens=train.tokens,
        warmup_tokens=train.warmup_tokens,
        decay_fraction=train.decay_fraction,
    )


def _row(train: TrainPlan, done: int, stats: StepStats, guard: LossGuard | None) -> Row:
    row: Row = {
        "tokens": done * train.batch_tokens,
        "step": done,
        "train/loss": float(stats.loss),
        "train/normalized_mse": float(stats.normalized_mse),
        "train/aux_loss": float(stats.aux_loss),
        "train/grad_norm": None if stats.grad_norm is None else float(stats.grad_norm),
        "train/dead_fraction": stats.dead_fraction,
        "train/lr": _lr(train, done - 1),
    }
    if stats.sparsity is not None:
        row["train/sparsity_penalty"] = float(stats.sparsity)
    if guard is not None and guard.skips:
        row["train/skipped_steps"] = guard.n_skipped
    return row


def _perf(tokens_per_s: float | None, observers: Observers) -> Row:
    mfu = None if tokens_per_s is None else observers.utilization(tokens_per_s)
    return {"perf/tokens_per_s": tokens_per_s, "perf/mfu": mfu}
