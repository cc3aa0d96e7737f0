"""A rule for the learning rate, ln lr = a + x ln n + y ln D + z ln B, from calibration runs.

Two ways to the same numbers. `rule_of_cells` takes the best rate of each cell (its own parabola)
and draws a line through them. `rule_of_runs` fits all runs at once, each cell with a level of its
own and all with one curvature: ln loss = c_cell + q (ln lr - rule)^2, which is linear in its
coefficients once multiplied out. It needs no bottom within each cell, so that edge cells count
too, and its errors come from the residuals of the losses; it is wrong where curvatures differ.

Both are offsets from the rule in use, in logs: what cannot be seen (an axis with one level) stays
as that rule has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from analysis.calibration.cells import BestRate, Cell
from analysis.errors import TableError
from analysis.laws.forms import Array
from scaling.schedule import BATCH_TOKENS, N_LATENTS, TOKENS, PowerRule

AXES = ("n", "tokens", "batch")
_NAMES = {"n": "n_latents", "tokens": "tokens", "batch": "batch_tokens"}
_REFERENCES = {"n": N_LATENTS, "tokens": TOKENS, "batch": BATCH_TOKENS}


@dataclass(frozen=True)
class FittedRule:
    """A rule at the references of scaling.schedule, with standard errors of ln lr and exponents."""

    rule: PowerRule
    log_lr_error: float | None  # None where nothing is left over to tell errors by
    exponent_errors: dict[str, float | None]  # of the axes that vary; the others are held
    rms: float  # of ln lr (cells) or of ln loss (runs), left over
    degrees_of_freedom: int
    curvature: float  # of ln loss in ln lr, shared or the mean over cells

    @property
    def held(self) -> tuple[str, ...]:
        return tuple(axis for axis in AXES if axis not in self.exponent_errors)

    def interval(self, axis: str) -> tuple[float, float] | None:
        """95% interval of an exponent by Student's t; None where it has no error."""
        error = self.exponent_errors.get(axis)
        if error is None:
            return None
        half = float(student_t.ppf(0.975, self.degrees_of_freedom)) * error
        value = getattr(self.rule, axis)
        return value - half, value + half

    def cost_of(self, other: PowerRule, cell: Cell) -> float:
        """Relative rise of the cell's loss by training at `other`'s rate instead of this one's."""
        point = (cell.n_latents, cell.tokens, cell.batch_tokens)
        offset = np.log(other.at(*point) / self.rule.at(*point))
        return float(np.expm1(self.curvature * offset**2))


def rule_of_cells(bests: Sequence[BestRate], in_use: PowerRule) -> FittedRule:
    """Least squares of ln lr over the cells whose best rate is usable.

    Raises:
        TableError: fewer usable cells than coefficients, or axes that cannot be told apart.
    """
    usable = [best for best in bests if best.usable]
    cells = [best.cell for best in usable]
    axes = _varying(cells)
    if len(cells) < len(axes) + 1 or not cells:
        raise TableError(
            f"{len(cells)} of {len(bests)} cells have a best rate seen from both sides, and a rule "
            f"in {', '.join(axes) or 'one rate'} needs {len(axes) + 1}; train further rates where "
            "a cell is flagged."
        )
    design = np.column_stack([np.ones(len(cells)), _logs(cells, axes)])
    _check_apart(design, axes)
    target = np.array([np.log(best.lr) for best in usable]) - _log_rates(in_use, cells)
    solution = _least_squares(design, target)
    residual = target - design @ solution
    freedom = len(cells) - design.shape[1]
    variance = float(residual @ residual) / freedom if freedom else np.nan
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    curvature = float(np.mean([best.curvature for best in usable]))
    return _fitted(in_use, axes, solution, errors, residual, freedom, curvature)


def rule_of_runs(cells: Sequence[Cell], in_use: PowerRule) -> FittedRule:
    """Least squares of ln loss over all runs near their cell's lowest loss, of one curvature.

    Raises:
        TableError: too few runs, axes that cannot be told apart, or losses that are no valley.
    """
    cells = [near for near in (cell.near for cell in cells) if len(near.lr) > 1]
    axes = _varying(cells)
    n_runs, n_coefficients = sum(len(cell.lr) for cell in cells), len(cells) + 2 + len(axes)
    if n_runs <= n_coefficients:
        raise TableError(
            f"{n_runs} rates in {len(cells)} cells are too few for {n_coefficients} coefficients "
            "of one valley for all; train at least 3 rates in each cell."
        )
    _check_apart(np.column_stack([np.ones(len(cells)), _logs(cells, axes)]), axes)
    design, target, weights = _valley(cells, axes, in_use)
    solution = _least_squares(design * weights[:, None], target * weights)
    residual = weights * (target - design @ solution)
    freedom = n_runs - n_coefficients
    scaled = (design * weights[:, None]).T @ (design * weights[:, None])
    covariance = np.linalg.inv(scaled) * float(residual @ residual) / freedom
    square, linear = solution[len(cells)], solution[len(cells) + 1 :]
    if square <= 0:
        raise TableError(
            "ln loss is no valley in ln lr over these runs: the best rates lie beyond those tried; "
            "train lower and higher ones."
        )
    offsets, errors = _ratios(square, linear, covariance[len(cells) :, len(cells) :])
    return _fitted(in_use, axes, offsets, errors, residual, freedom, float(square))


def _least_squares(design: Array, target: Array) -> Array:
    return np.asarray(np.linalg.lstsq(design, target)[0], dtype=np.float64)


def _valley(
    cells: Sequence[Cell], axes: Sequence[str], in_use: PowerRule
) -> tuple[Array, Array, Array]:
    """Design [runs, cells + 2 + axes], ln loss and weights: levels, u^2, u and u times each axis,
    u = ln lr less that of the rule in use."""
    member = np.repeat(np.arange(len(cells)), [len(cell.lr) for cell in cells])
    u = np.log(np.concatenate([cell.lr for cell in cells])) - _log_rates(in_use, cells)[member]
    axes_at = np.column_stack([np.ones(len(cells)), _logs(cells, axes)])[member]
    levels = np.eye(len(cells))[member]
    design = np.column_stack([levels, u**2, u[:, None] * axes_at])
    weights = np.sqrt(np.concatenate([cell.n_seeds for cell in cells]))
    return design, np.concatenate([cell.log_loss for cell in cells]), weights


def _ratios(square: float, linear: Array, covariance: Array) -> tuple[Array, Array]:
    """-linear / (2 square), the offsets of the valley's bottom, with errors to first order."""
    offsets = -linear / (2 * square)
    gradient = np.column_stack([-offsets / square, -np.eye(len(linear)) / (2 * square)])
    return offsets, np.sqrt(np.diag(gradient @ covariance @ gradient.T))


def _fitted(
    in_use: PowerRule,
    axes: Sequence[str],
    offsets: Array,
    errors: Array,
    residual: Array,
    freedom: int,
    curvature: float,
) -> FittedRule:
    at_references = in_use.at(N_LATENTS, TOKENS, BATCH_TOKENS)
    exponents = {axis: getattr(in_use, axis) for axis in AXES}
    exponents |= {
        axis: exponents[axis] + float(b) for axis, b in zip(axes, offsets[1:], strict=True)
    }
    known = [float(error) if np.isfinite(error) else None for error in errors]
    return FittedRule(
        rule=PowerRule(at_references * float(np.exp(offsets[0])), **exponents),
        log_lr_error=known[0],
        exponent_errors=dict(zip(axes, known[1:], strict=True)),
        rms=float(np.sqrt(np.mean(residual**2))),
        degrees_of_freedom=freedom,
        curvature=curvature,
    )


def _varying(cells: Sequence[Cell]) -> tuple[str, ...]:
    return tuple(a for a in AXES if len({getattr(cell, _NAMES[a]) for cell in cells}) > 1)


def _logs(cells: Sequence[Cell], axes: Sequence[str]) -> Array:
    """Logs of the axes against their references, [cells, axes]."""
    rows = [[np.log(getattr(c, _NAMES[a]) / _REFERENCES[a]) for a in axes] for c in cells]
    return np.array(rows, dtype=np.float64).reshape(len(cells), len(axes))


def _log_rates(rule: PowerRule, cells: Sequence[Cell]) -> Array:
    return np.log([rule.at(c.n_latents, c.tokens, c.batch_tokens) for c in cells])


def _check_apart(design: Array, axes: Sequence[str]) -> None:
    if np.linalg.matrix_rank(design, tol=1e-6 * np.abs(design).max()) < design.shape[1]:
        raise TableError(
            f"the cells' {' and '.join(axes)} move together, so that their exponents cannot be "
            "told apart; add cells in which one of them changes alone."
        )
