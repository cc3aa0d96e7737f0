"""The next runs to buy: which cells, run within a budget, narrow a law's prediction at targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from analysis.errors import TableError
from analysis.laws.forms import Array, Points
from analysis.planning.choice import Chosen, Problem, choose, random_choice
from analysis.planning.cost import Cost
from analysis.planning.stored import StoredLaw, check_point
from analysis.planning.variants import root_of
from analysis.uncertainty.interval import Interval, student_interval

_MOST_CANDIDATES = 2_000  # a choice of a thousand runs among them takes seconds
_BLIND_CHOICES = 200
MOST_K_SHARE = 1 / 16  # k above n / 16 bends the law (docs/planning.md)


@dataclass(frozen=True)
class NewRun:
    """A run to buy, and what is known once it and those before it are there."""

    n: float
    k: float
    tokens: float
    cost: float
    sd_after: float  # of ln L, root mean square over the targets


@dataclass(frozen=True)
class RunDesign:
    """Runs in the order of what they give for their cost. sd is of ln L: 0.01 is about 1%."""

    stored: StoredLaw
    targets: Points
    runs: tuple[NewRun, ...]
    unit: str
    budget: float
    n_candidates: int
    sd_before: float  # root mean square over the targets
    sd_blind: float  # the median over random choices of the same candidates and budget
    before: Interval  # 95% of the law at each target now, [T]
    after: Interval  # the same once the runs are there, if the law stays where it is

    @property
    def cost(self) -> float:
        return sum(run.cost for run in self.runs)

    @property
    def sd_after(self) -> float:
        return self.runs[-1].sd_after


def candidate_grid(
    n: Sequence[float],
    k: Sequence[float],
    tokens: Sequence[float],
    most_k_share: float = MOST_K_SHARE,
) -> dict[str, Array]:
    """Every n, k, tokens with k at most `most_k_share` of n; axis -> [J]. TableError where none
    is left, or more than 2,000."""
    cells = [cell for cell in product(n, k, tokens) if cell[1] <= most_k_share * cell[0]]
    if not cells:
        raise TableError(
            f"no candidate has k at most {most_k_share:g} n; give larger n, smaller k, or another "
            "--most-k-share."
        )
    if len(cells) > _MOST_CANDIDATES:
        raise TableError(f"{len(cells)} candidates are more than {_MOST_CANDIDATES}; give fewer.")
    return dict(zip(("n", "k", "tokens"), np.array(cells, dtype=np.float64).T, strict=True))


def design_runs(
    stored: StoredLaw,
    candidates: Points,
    targets: Points,
    cost: Cost,
    budget: float,
    *,
    replicates: int = 1,
    seed: int = 0,
) -> RunDesign:
    """Choose runs among `candidates` (axes n, k and tokens) that lower the mean variance of ln L
    at `targets` most, at most `budget` of the cost's unit and `replicates` runs of one cell.

    Linear in the doubt of the fit's parameters and blind to a wrong form of the law. `seed` is of
    the blind choices it is compared with. TableError where the fit has no covariance or no
    noise, a point lacks an axis, or the budget buys nothing that helps.
    """
    _check(stored, candidates, targets, replicates)
    problem = _problem(stored, candidates, targets, cost.of(candidates), budget, replicates)
    chosen = choose(problem)
    if not chosen.order:
        raise TableError(
            f"a budget of {budget:.3g} {cost.unit} buys no candidate that helps: the cheapest "
            f"costs {problem.cost_J.min():.3g}. Raise the budget, or give smaller candidates."
        )
    before = stored.predict(targets).of_law
    assert before is not None  # checked: there is a covariance
    nothing = np.zeros(len(problem.cost_J), dtype=np.int64)
    return RunDesign(
        stored=stored,
        targets=targets,
        runs=_new_runs(stored, candidates, chosen),
        unit=cost.unit,
        budget=budget,
        n_candidates=len(problem.cost_J),
        sd_before=float(np.sqrt(stored.variance * problem.variance(nothing))),
        sd_blind=_blind(stored, problem, seed),
        before=before,
        after=_interval_after(stored, candidates, targets, chosen.order),
    )


def _new_runs(stored: StoredLaw, candidates: Points, chosen: Chosen) -> tuple[NewRun, ...]:
    n, k, tokens = (candidates[axis].tolist() for axis in ("n", "k", "tokens"))
    cost = chosen.problem.cost_J.tolist()
    sds = np.sqrt(stored.variance * np.array(chosen.variances)).tolist()
    return tuple(
        NewRun(n[j], k[j], tokens[j], cost[j], sd) for j, sd in zip(chosen.order, sds, strict=True)
    )


def _problem(
    stored: StoredLaw,
    candidates: Points,
    targets: Points,
    cost: Array,
    budget: float,
    replicates: int,
) -> Problem:
    """In units of the present doubt and of a run's noise (analysis/planning/choice.py)."""
    root = root_of(stored.coefficient_covariance()) / np.sqrt(stored.variance)
    return Problem(
        candidates_JP=_gradients(stored, candidates) @ root,
        targets_TP=_gradients(stored, targets) @ root,
        cost_J=cost,
        budget=budget,
        limit=replicates,
    )


def _gradients(stored: StoredLaw, points: Points) -> Array:
    """d ln L / d coefficients at points, [M, P]."""
    logs = {axis: np.log(points[axis]) for axis in stored.law.axes}
    design = stored.law.form.design(logs)
    return design.value_and_jacobian(stored.law.coefficients())[1]


def _blind(stored: StoredLaw, problem: Problem, seed: int) -> float:
    rng = np.random.default_rng(seed)
    variances = [problem.variance(random_choice(problem, rng)) for _ in range(_BLIND_CHOICES)]
    return float(np.sqrt(stored.variance * np.median(variances)))


def _interval_after(
    stored: StoredLaw, candidates: Points, targets: Points, order: Sequence[int]
) -> Interval:
    """At each target, with the runs' degrees of freedom too: (C^-1 + X'X / s^2)^-1, by rows."""
    root = root_of(stored.coefficient_covariance())
    bought = _gradients(stored, {a: v[list(order)] for a, v in candidates.items()}) @ root
    information = np.eye(root.shape[1]) + bought.T @ bought / stored.variance
    at_targets = _gradients(stored, targets) @ root
    solved = np.linalg.solve(information, at_targets.T).T
    doubt = np.einsum("tp,tp->t", at_targets, solved)
    freedom = stored.degrees_of_freedom + len(order)
    return student_interval(stored.law.log_predict(targets), doubt, freedom)


def _check(stored: StoredLaw, candidates: Points, targets: Points, replicates: int) -> None:
    if stored.law.response != "loss":
        raise TableError(f"{stored.title} predicts no loss of a run; choose another law (--law).")
    stored.coefficient_covariance()
    if stored.variance <= 0:
        raise TableError(f"{stored.title} fits its runs exactly, so that no run could add to it.")
    check_point(stored, targets)
    check_point(stored, {a: v for a, v in candidates.items() if a in stored.law.axes})
    for axis in (axis for axis in candidates if axis not in stored.law.axes):
        low, high = stored.ranges.get(axis, (np.nan, np.nan))
        if low == high:
            check_point(stored, {**targets, axis: candidates[axis]})
    if replicates < 1:
        raise TableError(f"{replicates} runs of one cell are none; give --replicates 1 or more.")
