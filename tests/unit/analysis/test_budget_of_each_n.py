"""Laws without tokens on runs of one budget for each n, D*(n), and what their titles say of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fabricate import PLANTED, Cell, planted_table

from analysis.errors import TableError
from analysis.fitting.checks import grows_with_n
from analysis.fitting.fit import fit_law
from analysis.laws import LAWS
from analysis.records.table import RunTable
from analysis.study.fitted import FittedLaw, fit_table, title_of

SIZES = (256, 512, 1024, 2048, 4096)


def budget(n: int) -> int:
    return round(2e6 * (n / 1024) ** 0.6)


CELLS = [Cell(n, k, budget(n)) for n in SIZES for k in (4, 8, 16)]
TABLE = planted_table(PLANTED, CELLS, noise=0.001)


def _fit(table: RunTable, context: RunTable | None = None) -> FittedLaw:
    return fit_table(LAWS["l_nk"], table, n_bootstrap=0, context=context)


def test_l_nk_is_fitted_under_the_name_of_its_budgets_with_a_warning() -> None:
    fitted = _fit(TABLE)
    assert fitted.title == "L(n,k | D*(n))"
    assert len(fitted.fit.table) == len(CELLS)
    assert fitted.fit.rms_log_residual < 0.003
    message = fitted.warnings["not_converged"]
    assert "D*(n), 870k to 4.595M tokens" in message
    assert "tokens_unknown" not in fitted.warnings


def test_held_out_runs_of_the_largest_n_are_judged_by_it_too() -> None:
    fitted = fit_table(LAWS["l_nk"], TABLE, n_bootstrap=0, held_out=TABLE.points["n"] == max(SIZES))
    assert fitted.title == "L(n,k | D*(n))"
    assert fitted.holdout is not None
    assert len(fitted.holdout.table) == 3


def test_longer_runs_of_the_same_cells_say_whether_the_budgets_were_enough() -> None:
    def context(share: float) -> RunTable:
        longer = planted_table(PLANTED, [c._replace(tokens=2 * c.tokens) for c in CELLS], 0.0)
        both = {a: np.append(v, longer.points[a]) for a, v in TABLE.points.items()}
        loss = np.append(TABLE.loss, (1 - share) * TABLE.loss)
        return replace(TABLE, points=both, loss=loss, runs=(*TABLE.runs, *longer.runs))

    assert "not_converged" not in _fit(TABLE, context(0.005)).warnings
    falling = _fit(TABLE, context(0.03)).warnings["not_converged"]
    assert "in 15 of the 15 cells (n, k) that have a second budget (by up to 3.0%" in falling


def test_laws_with_tokens_stay_refused_on_them() -> None:
    for name in ("l_nkd", "l_nkdu", "l_nkd_additive"):
        with pytest.raises(TableError, match="tokens is a function of n alone"):
            fit_law(LAWS[name], TABLE)


def test_budgets_that_differ_within_an_n_or_shrink_with_n_are_refused() -> None:
    mixed = TABLE.points["tokens"].copy()
    mixed[0] *= 2
    shrinking = 1e9 / TABLE.points["n"]
    for tokens in (mixed, shrinking):
        table = replace(TABLE, points={**TABLE.points, "tokens": tokens})
        assert not grows_with_n(table)
        with pytest.raises(TableError, match="of one token budget, or of one for each n that"):
            fit_law(LAWS["l_nk"], table)


ONE_BUDGET = replace(TABLE, points={**TABLE.points, "tokens": np.full(len(TABLE), 5e5)})
TITLES = {
    "l_nk": "L(n,k | D=500k)",
    "l_nk_no_floor": "L(n,k | D=500k), no floor",
    "l_nk_constant_floor": "L(n,k | D=500k), floor without k",
    "l_nk_no_gamma": "L(n,k | D=500k), no gamma",
    "l_n": "L(n | D=500k)",
    "l_c": "L(C | D=500k)",
    "l_s": "L_s(n | D=500k)",
}


@pytest.mark.parametrize("name", LAWS)
def test_titles_name_the_budget_inside_the_arguments(name: str) -> None:
    """Laws with tokens, and tokens to convergence, have none to name."""
    law = LAWS[name]
    assert title_of(law, ONE_BUDGET) == TITLES.get(name, law.title)
    assert (name in TITLES) == ("tokens" not in law.axes and law.response == "loss")


@pytest.mark.parametrize("name", LAWS)
def test_converged_runs_have_the_plain_title(name: str) -> None:
    law = LAWS[name]
    for table in (ONE_BUDGET, TABLE):
        assert title_of(law, replace(table, shown_converged="rule")) == law.title


def test_titles_of_budgets_tied_to_n() -> None:
    assert title_of(LAWS["l_nk_no_gamma"], TABLE) == "L(n,k | D*(n)), no gamma"
    assert title_of(LAWS["l_n"], TABLE) == "L(n | D*(n))"
    assert title_of(LAWS["l_c"], TABLE) == "L(C)"  # of the runs no cheaper one beats, at any D
