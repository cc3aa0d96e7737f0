"""What a law needs of a table before a fit of it means anything; each refusal says what to do."""

from __future__ import annotations

import numpy as np

from analysis.counts import short_count
from analysis.errors import TableError
from analysis.laws.forms import Array
from analysis.laws.law import Law
from analysis.records.table import COLUMN_OF, RunTable

LEAST_LEVELS = 3
_MOST_LEVELS_SHOWN = 6
_RESPONSES = {"loss": "losses", "tokens": "tokens to convergence"}


def check_usable(law: type[Law], table: RunTable) -> None:
    """TableError unless the table can determine the law: rows, levels, budgets, ties."""
    _check_response(law, table)
    _check_axes(law, table)
    _check_one_k(law, table)
    _check_size(law, table)
    _check_levels(law, table)
    _check_ties(law, table)


def one_budget(table: RunTable) -> float | None:
    """The token budget common to all rows; None where there is no column or more than one."""
    budgets = np.unique(table.points.get("tokens", np.zeros(0)))
    return float(budgets[0]) if len(budgets) == 1 else None


def grows_with_n(table: RunTable) -> bool:
    """Whether each n has one token budget, of several, and no larger n has a smaller one: D*(n)."""
    n, tokens = table.points["n"], table.points.get("tokens", np.zeros(0))
    if len(np.unique(tokens)) < 2 or not _is_function_of(tokens, n):
        return False
    return bool((np.diff(tokens[np.argsort(n, kind="stable")]) >= 0).all())


def _check_response(law: type[Law], table: RunTable) -> None:
    if law.response != table.response:
        raise TableError(
            f"law {law.name} is fitted to {_RESPONSES[law.response]}, but this table's "
            f"{table.loss_name} was read as {_RESPONSES[table.response]}; read it for this law "
            "(python -m analysis.fit does), or choose another law."
        )


def _check_one_k(law: type[Law], table: RunTable) -> None:
    if "k" in law.constant_axes and len(np.unique(table.points["k"])) > 1:
        raise TableError(
            f"law {law.name} takes runs of one k, but k has {_levels_text('k', table.points['k'])}"
            ": every k has a law of its own. Keep the runs of one k (--k), or fit a law that holds "
            "k (l_nk, l_nkd, l_nkdu)."
        )


def _check_axes(law: type[Law], table: RunTable) -> None:
    missing = [axis for axis in law.axes if axis not in table.points]
    if missing:
        raise TableError(
            f"law {law.name} needs the column {COLUMN_OF.get(missing[0], missing[0])}, which the "
            "table lacks or has for some runs only; add it or choose a law without it (l_nk)."
        )
    if "tokens" in law.constant_axes:
        _check_one_budget(law, table)


def _check_one_budget(law: type[Law], table: RunTable) -> None:
    budgets = table.points.get("tokens", np.zeros(0))
    if len(np.unique(budgets)) < 2 or table.shown_converged or grows_with_n(table):
        return
    raise TableError(
        f"law {law.name} takes runs of one token budget, or of one for each n that grows with n, "
        f"but tokens has {_levels_text('tokens', budgets)}: runs of mixed budgets bend this law "
        "without showing it in the residuals. Keep one budget, fit a law that holds tokens (l_nkd, "
        "l_nkdu, l_nkd_additive), or keep the runs that are shown converged (--converged)."
    )


def _check_size(law: type[Law], table: RunTable) -> None:
    n_parameters = len(law.parameter_names)
    if len(table) < n_parameters + 2:
        raise TableError(
            f"law {law.name} has {n_parameters} parameters and needs at least {n_parameters + 2} "
            f"runs to fit, but there are only {len(table)}; add runs, hold out fewer, or choose a "
            "law with fewer parameters."
        )


def _check_levels(law: type[Law], table: RunTable) -> None:
    for axis in law.axes:
        values = table.points[axis]
        if len(np.unique(values)) < LEAST_LEVELS:
            raise TableError(
                f"law {law.name} needs at least {LEAST_LEVELS} levels of {axis}, but the runs to "
                f"fit have {_levels_text(axis, values)}: a curve through fewer has no "
                f"curvature to find its floor from. Add runs at other values of {axis}."
            )


def _check_ties(law: type[Law], table: RunTable) -> None:
    for tied, by in (("k", "n"), ("n", "k"), ("subject", "n"), ("n", "subject")):
        if {tied, by} <= {*law.axes} and _is_function_of(table.points[tied], table.points[by]):
            raise TableError(
                f"{tied} is a function of {by} in this table (one {tied} for each {by}), so their "
                f"effects on the loss cannot be told apart. Add runs with several {tied} at the "
                f"same {by}."
            )
    if {"tokens", "n"} <= {*law.axes} and _is_function_of(
        table.points["tokens"], table.points["n"]
    ):
        raise TableError(
            "tokens is a function of n alone in this table (one budget for each n), so under-"
            "training cannot be told from the effect of n. Add runs of the same n with several "
            "token budgets."
        )


def _is_function_of(values: Array, given: Array) -> bool:
    return all(len(np.unique(values[given == level])) == 1 for level in np.unique(given))


def _levels_text(axis: str, values: Array) -> str:
    text = short_count if axis == "tokens" else "{:.0f}".format
    levels = [text(level) for level in np.unique(values).tolist()]
    shown = ", ".join(levels[:_MOST_LEVELS_SHOWN])
    more = ", ..." if len(levels) > _MOST_LEVELS_SHOWN else ""
    return f"{len(levels)} level{'s' if len(levels) > 1 else ''} ({shown}{more})"
