"""Which runs to buy: those that lower the variance of target predictions most, within a budget.

A law linearized at its fit is a linear model, in which the variance at a target after more runs
does not depend on how they come out: it can be known before they are bought. Runs are chosen
greedily by gain per cost and improved by exchange (Fedorov 1972; c- and I-optimal design, Atkinson,
Donev and Tobias 2007, chapters 10 and 12).

J = candidates, T = targets, P = parameters. Directions are in units in which the present doubt of
the parameters is the identity and a run's noise has variance 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.laws.forms import Array

_MOST_ROUNDS = 50
_LEAST_GAIN = 1e-9  # relative: less is rounding
_FIRST_RUNS = 12  # candidates tried as the first purchase
_IMPROVED = 4  # choices that are improved, the best ones


@dataclass(frozen=True)
class Problem:
    """What may be bought. A run of candidate j measures candidates_JP[j] with noise of variance 1;
    targets_TP are to be known. `limit` is how often a candidate may be bought."""

    candidates_JP: Array
    targets_TP: Array
    cost_J: Array
    budget: float
    limit: int = 1

    def variance(self, counts_J: NDArray[np.int64]) -> float:
        """Mean variance over the targets after buying each candidate so often."""
        return _State.after(self, counts_J).variance


@dataclass
class _State:
    problem: Problem
    doubt_PP: Array
    counts_J: NDArray[np.int64]
    spent: float = 0.0

    @classmethod
    def nothing(cls, problem: Problem) -> _State:
        n_candidates, n_parameters = problem.candidates_JP.shape
        return cls(problem, np.eye(n_parameters), np.zeros(n_candidates, dtype=np.int64))

    @classmethod
    def after(cls, problem: Problem, counts_J: NDArray[np.int64]) -> _State:
        state = cls.nothing(problem)
        for j in np.repeat(np.arange(len(counts_J)), counts_J):
            state.buy(int(j))
        return state

    @property
    def variance(self) -> float:
        targets = self.problem.targets_TP
        return float(np.einsum("tp,pq,tq->", targets, self.doubt_PP, targets)) / len(targets)

    def copy(self) -> _State:
        return _State(self.problem, self.doubt_PP.copy(), self.counts_J.copy(), self.spent)

    def gains(self) -> Array:
        """By how much each candidate would lower `variance`, [J]; 0 where it cannot be bought."""
        problem = self.problem
        seen_JP = problem.candidates_JP @ self.doubt_PP
        own_J = np.einsum("jp,jp->j", seen_JP, problem.candidates_JP)
        shared_JT = seen_JP @ problem.targets_TP.T
        gains = np.mean(shared_JT**2, axis=1) / (1.0 + own_J)
        left = problem.budget - self.spent
        open_J = (self.counts_J < problem.limit) & (problem.cost_J <= left * (1 + 1e-12))
        return np.where(open_J, gains, 0.0)

    def buy(self, j: int) -> None:
        self._change(j, 1)

    def give_back(self, j: int) -> None:
        self._change(j, -1)

    def _change(self, j: int, sign: int) -> None:
        """One run more or fewer, by Sherman and Morrison."""
        x = self.doubt_PP @ self.problem.candidates_JP[j]
        own = float(self.problem.candidates_JP[j] @ x)
        self.doubt_PP = self.doubt_PP - sign * np.outer(x, x) / (1.0 + sign * own)
        self.counts_J[j] += sign
        self.spent += sign * float(self.problem.cost_J[j])


@dataclass(frozen=True)
class Chosen:
    """Candidates bought, in the order of their gain per cost; one more run of one is another."""

    problem: Problem
    order: tuple[int, ...]
    variances: tuple[float, ...]  # mean over the targets after each

    @property
    def spent(self) -> float:
        return float(self.problem.cost_J[list(self.order)].sum())


def choose(problem: Problem) -> Chosen:
    """The best of several greedy choices, improved by exchange until no exchange helps.

    Not always THE optimum, which would take trying all subsets: docs/planning.md says how near.
    """
    starts = sorted(_starts(problem), key=lambda state: state.variance)
    improved = (_exchange(start) for start in starts[:_IMPROVED])
    return _in_order(min(improved, key=lambda state: state.variance))


def _starts(problem: Problem) -> Iterator[_State]:
    """Greedy choices, also after one costly run that a greedy choice would not begin with."""
    nothing = _State.nothing(problem)
    first = np.argsort(-nothing.gains())[:_FIRST_RUNS].tolist()
    for j in (None, *(j for j in first if nothing.gains()[j] > 0)):
        for by_cost in (True, False):
            start = nothing.copy()
            if j is not None:
                start.buy(j)
            yield _fill(start, by_cost=by_cost)


def random_choice(problem: Problem, rng: np.random.Generator) -> NDArray[np.int64]:
    """Counts [J] of candidates bought blindly, one after the other, while any can be paid."""
    counts = np.zeros(len(problem.cost_J), dtype=np.int64)
    left = problem.budget
    for j in rng.permutation(np.repeat(np.arange(len(counts)), problem.limit)):
        if problem.cost_J[j] <= left * (1 + 1e-12):
            counts[j] += 1
            left -= float(problem.cost_J[j])
    return counts


def _fill(state: _State, *, by_cost: bool) -> _State:
    """Buy the most useful run that can still be paid, until none is left."""
    while True:
        gains = state.gains()
        j = int(np.argmax(gains / state.problem.cost_J if by_cost else gains))
        if gains[j] <= _LEAST_GAIN * state.variance:
            return state
        state.buy(j)


def _exchange(state: _State) -> _State:
    """Give one run back, or two, and spend what that frees better, as long as that helps."""
    for _ in range(_MOST_ROUNDS):
        trials = (
            _fill(_without(state, given), by_cost=by_cost)
            for given in _gifts(state)
            for by_cost in (True, False)
        )
        better = min(trials, key=lambda trial: trial.variance, default=state)
        if better.variance >= state.variance * (1 - _LEAST_GAIN):
            break
        state = better
    # Bought anew: rounding of what was given back is gone.
    return _State.after(state.problem, state.counts_J)


def _gifts(state: _State) -> list[tuple[int, ...]]:
    chosen = [int(j) for j in np.flatnonzero(state.counts_J)]
    pairs = [(a, b) for a in chosen for b in chosen if a < b or (a == b and state.counts_J[a] > 1)]
    return [(j,) for j in chosen] + (pairs if len(pairs) <= 60 else [])


def _without(state: _State, given: tuple[int, ...]) -> _State:
    rest = state.copy()
    for j in given:
        rest.give_back(j)
    return rest


def _in_order(state: _State) -> Chosen:
    left = state.counts_J.copy()
    again = _State.nothing(state.problem)
    order: list[int] = []
    variances: list[float] = []
    while left.any():
        rate = np.where(left > 0, again.gains() / state.problem.cost_J, -1.0)
        j = int(np.argmax(rate))
        again.buy(j)
        left[j] -= 1
        order.append(j)
        variances.append(again.variance)
    return Chosen(state.problem, tuple(order), tuple(variances))
