"""Predicting runs that the fit never saw: which rows to hold out, and how well they came out."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.errors import TableError
from analysis.fitting.fit import Fit
from analysis.laws.forms import Array
from analysis.records.table import RunTable
from analysis.uncertainty.doubt import Doubt, prediction_interval
from analysis.uncertainty.interval import Interval

_MOST_CHARACTERS = 200
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


@dataclass(frozen=True)
class Holdout:
    """Held-out runs against the fit of the others; residuals are ln(loss / prediction)."""

    table: RunTable
    residuals: Array  # [H]
    interval: Interval  # 95% prediction interval of the loss, [H] each

    @property
    def rms_log(self) -> float:
        return float(np.sqrt(np.mean(self.residuals**2)))

    @property
    def worst_log(self) -> float:
        return float(np.abs(self.residuals).max())

    @property
    def in_pi95(self) -> int:
        inside = (self.interval.low <= self.table.loss) & (self.table.loss <= self.interval.high)
        return int(inside.sum())

    @property
    def mean_log(self) -> float:
        """Above 0: the runs came out worse than predicted."""
        return float(self.residuals.mean())


def judge(fit: Fit, held_out: RunTable, doubt: Doubt | None = None) -> Holdout:
    """Predict held-out runs; `doubt` is that of the fit's clusters where it has some."""
    residuals = held_out.log_loss - fit.log_predict(held_out.points)
    return Holdout(held_out, residuals, prediction_interval(fit, held_out.points, doubt=doubt))


def rows_matching(expression: str, table: RunTable) -> NDArray[np.bool_]:
    """Rows for which an expression such as 'n > 65536 and k >= 64' is true, bool [M].

    Comparisons, and / or / not, arithmetic and numbers over n (n_latents), k and tokens; nothing
    else is evaluated. TableError for anything else, and where it leaves no row on either side.
    """
    if len(expression) > _MOST_CHARACTERS:
        raise _bad(expression, f"it is longer than {_MOST_CHARACTERS} characters")
    columns: dict[str, Array] = {**table.points, "n_latents": table.points["n"]}
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _bad(expression, "it is not an expression") from error
    with np.errstate(all="ignore"):
        mask = _evaluate(tree.body, columns, expression)
    _truth(mask, expression)
    if mask.all() or not mask.any():
        which = "every row" if mask.all() else "no row"
        raise _bad(expression, f"it holds out {which} of {len(table)}")
    return mask


def _evaluate(node: ast.expr, columns: Mapping[str, Array], expression: str) -> Any:
    def value(child: ast.expr) -> Any:
        return _evaluate(child, columns, expression)

    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.Name(id=name) if name in columns:
            return columns[name]
        case ast.Name(id=name):
            raise _bad(expression, f"it names {name}, but the columns are {', '.join(columns)}")
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            values = [value(child) for child in (left, *comparators)]
            pairs = pairwise(values)
            links = [_apply(op, expression, *pair) for op, pair in zip(ops, pairs, strict=True)]
            return np.logical_and.reduce(links)
        case ast.BoolOp(op=op, values=children):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return combine.reduce([_truth(value(child), expression) for child in children])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_truth(value(operand), expression))
        case ast.UnaryOp(op=op, operand=operand):
            return _apply(op, expression, value(operand))
        case ast.BinOp(left=left, op=op, right=right):
            return _apply(op, expression, value(left), value(right))
        case _:
            raise _bad(expression, f"it has a {type(node).__name__}, which is not allowed")


def _truth(value: Any, expression: str) -> NDArray[np.bool_]:
    """`value` where it is a comparison of rows; a number by itself is no statement about one."""
    if not (isinstance(value, np.ndarray) and value.dtype == bool):
        raise _bad(expression, "it does not say true or false for each row")
    return value


def _apply(op: ast.AST, expression: str, *values: Any) -> Any:
    if type(op) not in _OPERATORS:
        raise _bad(expression, f"it has the operator {type(op).__name__}, which is not allowed")
    try:
        return _OPERATORS[type(op)](*values)
    except (ZeroDivisionError, OverflowError, TypeError) as error:
        raise _bad(expression, str(error)) from error


def _bad(expression: str, why: str) -> TableError:
    shown = expression if len(expression) <= _MOST_CHARACTERS else expression[:60] + "..."
    return TableError(
        f"--holdout {shown!r} cannot be used: {why}. Write comparisons of n, k and tokens with "
        "numbers, joined by and / or / not, for example 'n > 65536' or 'n >= 4096 and k < 32', "
        "that hold out some rows and leave the rest to fit."
    )
