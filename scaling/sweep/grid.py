"""Which points of a grid are meant: `sweep.where`, read as an expression and never executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scaling.config import RunConfig
from scaling.errors import UserError

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda value, group: value in group,
    ast.NotIn: lambda value, group: value not in group,
}


def keep_wanted(points: Sequence[RunConfig]) -> list[RunConfig]:
    """The points for which their own `sweep.where` holds; all of those without one."""
    return [point for point in points if _is_wanted(point)]


def _is_wanted(point: RunConfig) -> bool:
    return point.sweep.where is None or bool(evaluate(point.sweep.where, _names(point)))


def _names(point: RunConfig) -> dict[str, float]:
    ae = point.autoencoder
    sparsity = {name: getattr(ae, name) for name in ("k", "penalty") if hasattr(ae, name)}
    return {
        "n_latents": ae.n_latents,
        **sparsity,
        "tokens": point.train.tokens,
        "batch_tokens": point.train.batch_tokens,
        "lr_scale": point.train.lr_scale,
        "seed": point.train.seed,
        "rung": point.sweep.rung,
        "share": point.sweep.share,
    }


def evaluate(expression: str, names: Mapping[str, float]) -> Any:
    """The value of an arithmetic or logical expression over `names`.

    Raises:
        UserError: it is not such an expression, or names something else.
    """
    try:
        return _value(ast.parse(expression, mode="eval").body, names)
    except (SyntaxError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"sweep.where={expression!r} cannot be evaluated ({error}). Compare numbers and the "
            f"names {', '.join(names)}, joined by and, or, not."
        ) from error


def _value(node: ast.expr, names: Mapping[str, float]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return names[name]
        case ast.Tuple(elts=elements):
            return tuple(_value(element, names) for element in elements)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.BoolOp(op=op, values=values):
            every = all if isinstance(op, ast.And) else any
            return every(_value(value, names) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, names)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, names)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return _comparison(left, ops, comparators, names)
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not allowed")


def _comparison(
    left: ast.expr, ops: list[ast.cmpop], right: list[ast.expr], names: Mapping[str, float]
) -> bool:
    values = [_value(node, names) for node in (left, *right)]
    return all(
        _OPERATORS[type(op)](a, b) for op, a, b in zip(ops, values, values[1:], strict=False)
    )
