"""The rule that ends a run to convergence: when it looks, when it ends, what it remembers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scaling.train.stopping import LOSS, StopRule, evaluated_steps


def rule(**change: object) -> StopRule:
    settings = {"fall": 0.01, "first_step": 10, "per_doubling": 2, "steps": 10_000}
    return StopRule(**(settings | change))  # type: ignore[arg-type]


def ended_at(rule: StopRule, loss_at: Callable[[int], float]) -> int | None:
    for step in range(1, 10_001):
        if rule.evaluates(step) and rule.ends(step, {LOSS: loss_at(step)}):
            return step
    return None


@pytest.mark.parametrize("per_doubling", [1, 2, 3, 4])
def test_each_evaluation_has_one_at_half_its_steps(per_doubling: int) -> None:
    steps = evaluated_steps(37, per_doubling, 3_000)
    assert steps == sorted(set(steps))
    assert steps[0] == 37
    assert steps[-1] <= 3_000
    assert all(step // 2 in steps and step % 2 == 0 for step in steps if step >= 2 * 37)
    assert sum(1000 <= step < 2000 for step in steps) == per_doubling


def test_few_first_steps_give_fewer_evaluations() -> None:
    assert evaluated_steps(1, 4, 8) == [1, 2, 4, 8]
    assert evaluated_steps(9, 2, 8) == []


def test_a_power_law_with_a_floor_ends_where_its_doubling_falls_below() -> None:
    """L = 0.2 + 0.8 / step: the fall per doubling is 0.4 / step over the loss at half of it."""

    def loss_at(step: int) -> float:
        return 0.2 + 0.8 / step

    found = rule()
    end = ended_at(found, loss_at)
    assert end is not None
    assert 1 - loss_at(end) / loss_at(end // 2) < 0.01
    before = max(step for step in evaluated_steps(10, 2, 10_000) if step < end)
    assert 1 - loss_at(before) / loss_at(before // 2) >= 0.01
    assert found.met
    assert found.last_fall == pytest.approx(1 - loss_at(end) / loss_at(end // 2))


def test_a_loss_that_goes_on_falling_never_ends_a_run() -> None:
    found = rule()
    assert ended_at(found, lambda step: step**-0.1) is None
    assert not found.met
    assert found.last_fall == pytest.approx(1 - 2**-0.1)


def test_a_loss_that_rises_ends_it() -> None:
    assert ended_at(rule(), lambda step: 0.3 + 1e-6 * step) == 20


def test_no_run_ends_before_its_first_doubling() -> None:
    found = rule()
    assert not found.ends(10, {LOSS: 0.5})
    assert found.last_fall is None


def test_other_evaluations_do_not_count() -> None:
    found = rule()
    assert not found.ends(10, {LOSS: 0.5})
    assert not found.ends(15, {LOSS: 0.1})
    assert not found.ends(20, {LOSS: 0.4})


def test_what_it_saw_survives_a_checkpoint() -> None:
    """A rule taken up anew judges as the old one; without its memory it would not."""
    straight, before, after, forgetful = rule(), rule(), rule(), rule()

    def loss_at(step: int) -> float:
        return 0.2 + 0.8 / step

    end = ended_at(straight, loss_at)
    assert end is not None
    for step in evaluated_steps(10, 2, end - 1):
        assert not before.ends(step, {LOSS: loss_at(step)})
    after.load_state(before.state())
    assert after.last_fall == before.last_fall
    assert after.ends(end, {LOSS: loss_at(end)})
    assert not forgetful.ends(end, {LOSS: loss_at(end)})


def test_ranks_end_by_the_word_they_agreed_on() -> None:
    asked: list[bool] = []

    def agree(met: bool) -> bool:
        asked.append(met)
        return False

    found = rule(agree=agree)
    assert ended_at(found, lambda step: 0.3) is None
    assert not found.met
    assert any(asked)
    assert len(asked) == len(evaluated_steps(10, 2, 10_000))  # collective: asked each time
