"""Many weighted fits of one law at once: least squares, or Huber's loss where errors have a limit.

All refits advance together in one batched, damped Newton method, so 4,000 of them cost seconds and
not minutes. (The curvature of the law is kept: without it, resamples whose floor is nearly free
creep along their valley for thousands of steps.) Huber's loss is minimized by reweighting: at each
step a residual beyond the limit weighs limit / |residual|, which is a bound of the loss from above
that touches it, so that a step which lowers the bound lowers the loss.

Legend: B = refits, M = runs, P = coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.laws.forms import Array, Design

_CHUNK = 512  # refits advanced together: their Jacobians stay within cache-friendly tens of MB
_MAX_STEPS = 200
COST_TOLERANCE = 1e-8  # relative gain of a step below which a refit has settled: 1e-3 of an se
_FIRST_DAMPING = 1e-3
_LEAST_DAMPING = 1e-10  # keeps a flat direction solvable
_MOST_DAMPING = 1e12
_LEAST_RESIDUAL = 1e-200  # to divide by


@dataclass(frozen=True)
class Problem:
    """Refits of one law: each has its weights, its losses, and the residual of ln loss from which
    Huber's loss grows linearly (infinity: least squares)."""

    design: Design
    log_loss: Array  # [B, M]
    weights: Array  # [B, M]
    limits: Array  # [B, 1]
    tolerance: float

    def part(self, which: NDArray[np.intp] | slice) -> Problem:
        return replace(
            self,
            log_loss=self.log_loss[which],
            weights=self.weights[which],
            limits=self.limits[which],
        )

    def cost(self, coefficients: Array) -> Array:
        """Sum of weighted squares, or twice Huber's loss, [B]."""
        residuals = self.design.log_value(coefficients) - self.log_loss
        return np.einsum("bm,bm->b", self.weights, huber_loss(residuals, self.limits))


def refit(
    design: Design,
    log_loss: Array,
    weights: Array,
    start: Array,
    *,
    limit: float | Array = np.inf,
    tolerance: float = COST_TOLERANCE,
) -> tuple[Array, NDArray[np.bool_]]:
    """Weighted fit for each row of weights [B, M], begun at start [P], or [B, P].

    `log_loss` is [M], or [B, M] where each refit has losses of its own; `limit`, one for all or
    [B], is the residual from which Huber's loss grows linearly. Returns coefficients [B, P] and
    whether each refit settled, [B].
    """
    n_refits = len(weights)
    starts = np.broadcast_to(start, (n_refits, start.shape[-1]))
    limits = np.broadcast_to(np.asarray(limit, dtype=np.float64), (n_refits,))[:, None]
    losses = np.broadcast_to(log_loss, weights.shape)
    problem = Problem(design, losses, weights, limits, tolerance)
    chunks = [slice(low, low + _CHUNK) for low in range(0, n_refits, _CHUNK)]
    parts = [_refit(problem.part(chunk), starts[chunk]) for chunk in chunks]
    coefficients, settled = (np.concatenate(part) for part in zip(*parts, strict=True))
    return coefficients, settled


def huber_weights(residuals: Array, limit: float | Array) -> Array:
    """1 up to the limit, limit / |residual| beyond it."""
    return np.minimum(1.0, limit / np.maximum(np.abs(residuals), _LEAST_RESIDUAL))


def huber_loss(residuals: Array, limit: float | Array) -> Array:
    """Twice Huber's loss: the square up to the limit, then 2 limit |residual| - limit^2."""
    inside = np.minimum(np.abs(residuals), limit)
    return inside * (2 * np.abs(residuals) - inside)


def _refit(problem: Problem, starts: Array) -> tuple[Array, NDArray[np.bool_]]:
    state = _State.begin(problem, starts)
    for _ in range(_MAX_STEPS):
        active = np.flatnonzero(~state.settled)
        if not len(active):
            break
        _advance(state, active, problem.part(active))
    return state.coefficients, state.settled


@dataclass
class _State:
    coefficients: Array  # [B, P]
    cost: Array  # [B], sum of weighted squares (or twice Huber's loss)
    damping: Array  # [B]
    settled: NDArray[np.bool_]  # [B]

    @classmethod
    def begin(cls, problem: Problem, starts: Array) -> _State:
        damping = np.full(len(starts), _FIRST_DAMPING)
        unsettled = np.zeros(len(starts), dtype=bool)
        return cls(starts.copy(), problem.cost(starts), damping, unsettled)


def _advance(state: _State, active: NDArray[np.intp], problem: Problem) -> None:
    """One damped Newton step of every active refit; only steps that lower its cost are taken."""
    at = state.coefficients[active]
    gradient, hessian = _derivatives(problem, at, state.damping[active])
    trial = at - np.linalg.solve(hessian, gradient[..., None])[..., 0]
    cost = problem.cost(trial)
    gain = state.cost[active] - cost
    accepted = gain >= 0
    _accept(state, active[accepted], trial[accepted], cost[accepted])
    small = accepted & (gain <= problem.tolerance * state.cost[active])
    damping = state.damping[active] * np.where(accepted, 0.1, 10.0)
    state.damping[active] = np.maximum(damping, _LEAST_DAMPING)
    state.settled[active] = small | (damping > _MOST_DAMPING)


def _accept(state: _State, which: NDArray[np.intp], trial: Array, cost: Array) -> None:
    state.coefficients[which] = trial
    state.cost[which] = cost


def _derivatives(problem: Problem, at: Array, damping: Array) -> tuple[Array, Array]:
    """Half the gradient [B, P] and half the damped Hessian [B, P, P] of the weighted squares."""
    value, jacobian = problem.design.value_and_jacobian(at)
    residuals = value - problem.log_loss
    weights = problem.weights * huber_weights(residuals, problem.limits)
    pull = weights * residuals
    weighted = (jacobian * weights[..., None]).swapaxes(-1, -2)
    gradient = (jacobian.swapaxes(-1, -2) @ pull[..., None])[..., 0]
    hessian = weighted @ jacobian
    scale = np.einsum("bpp->bp", hessian) + 1e-12
    hessian += problem.design.curvature(jacobian, pull)
    np.einsum("bpp->bp", hessian)[...] += damping[:, None] * scale
    return gradient, hessian
