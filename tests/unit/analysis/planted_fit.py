"""Fits of planted tables, stored as a file would hold them, and small problems of choice, for tests
and benchmarks/planning.py."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from fabricate import PLANTED, Cell, demo_cells, planted_table

from analysis.laws.law import Law
from analysis.planning.choice import Problem
from analysis.planning.stored import StoredLaw
from analysis.study.fitted import FittedLaw, fit_table

D_MODEL = 576


def planted_fit(
    law: Law = PLANTED, cells: list[Cell] | None = None, noise: float = 0.01, **options: Any
) -> FittedLaw:
    """The law fitted to its own noisy losses, without a bootstrap unless asked."""
    table = planted_table(law, cells or demo_cells(), noise)
    return fit_table(type(law), table, **{"n_bootstrap": 0, **options})


def stored_as(law: Law, relative_doubt: float = 0.01, **changes: Any) -> StoredLaw:
    """A law as planted, with an independent doubt of its coefficients."""
    inverse = np.linalg.inv(law.coefficient_jacobian())
    doubt = relative_doubt**2 * np.diag(np.abs(law.coefficients()) + 0.1)
    values: dict[str, Any] = {
        **{"law": law, "title": law.title, "rows": "all runs", "loss": "normalized_mse"},
        **{"n_runs": 40, "covariance": inverse @ doubt @ inverse.T, "variance": 1e-4},
        **{"degrees_of_freedom": 30, "d_model": D_MODEL, "warnings": {}},
        "ranges": {"n": (256.0, 4096.0), "k": (4.0, 64.0), "tokens": (125e3, 1e6)},
    }
    return StoredLaw(**{**values, **changes})


def small_problem(seed: int, most_candidates: int = 7) -> Problem:
    """5 or more candidates of costs and lengths spread over decades, bought up to twice."""
    rng = np.random.default_rng(seed)
    n_candidates, n_parameters = rng.integers(5, most_candidates + 1), rng.integers(2, 6)
    size = np.exp(rng.normal(0, 1, (n_candidates, 1)))
    cost = np.exp(rng.normal(0, 1.2, n_candidates))
    return Problem(
        candidates_JP=size * rng.standard_normal((n_candidates, n_parameters)),
        targets_TP=rng.standard_normal((rng.integers(1, 3), n_parameters)),
        cost_J=cost,
        budget=float(cost.sum() * rng.uniform(0.2, 0.6)),
        limit=int(rng.integers(1, 3)),
    )


def best_variance(problem: Problem) -> float:
    """Over every choice that can be paid."""
    choices = product(range(problem.limit + 1), repeat=len(problem.cost_J))
    return min(
        problem.variance(np.array(counts))
        for counts in choices
        if np.dot(counts, problem.cost_J) <= problem.budget
    )
