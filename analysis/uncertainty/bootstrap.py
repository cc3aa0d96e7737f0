"""Case bootstrap over runs: thousands of refits at once, warm-started at the fit of all runs.

A refit gives each run the number of times it was drawn as its weight. All refits advance together
in one batched, damped Newton method, so 4,000 of them cost seconds and not minutes.
(The curvature of the law is kept: without it, resamples whose floor is nearly free creep along
their valley for thousands of steps.)

Legend: B = refits, M = runs, P = coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.fit import Fit
from analysis.laws.forms import Array, Design, Points

_CHUNK = 512  # refits advanced together: their Jacobians stay within cache-friendly tens of MB
_MAX_STEPS = 200
_COST_TOLERANCE = 1e-8  # relative gain of a step below which a refit has settled: 1e-3 of an se
_FIRST_DAMPING = 1e-3
_LEAST_DAMPING = 1e-10  # keeps a flat direction solvable
_MOST_DAMPING = 1e12
_MOST_DRAWS = 50  # rounds of redrawing samples with too few different runs


class Interval(NamedTuple):
    low: Array
    high: Array


@dataclass(frozen=True)
class Refits:
    """Coefficients [B, P] in the centered logs of `fit`, one row per bootstrap sample."""

    fit: Fit
    coefficients: Array
    settled: NDArray[np.bool_]  # [B], False where the step limit came first
    seed: int

    def __len__(self) -> int:
        return len(self.coefficients)

    @property
    def share_unsettled(self) -> float:
        return float(1.0 - self.settled.mean())

    def parameters(self) -> Array:
        """Named parameters [B, P] of every refit, at the reference sizes of the fit."""
        law = type(self.fit.law)
        plain = self.coefficients @ law.form.uncenter(self.fit.center).T
        return law.parameters_from(plain, self.fit.reference)

    def parameter_intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Percentile interval of each parameter; infinite where refits have no finite value."""
        names = self.fit.law.parameter_names
        low, high = np.quantile(self.parameters(), _tails(level), axis=0, method="nearest")
        return {n: (float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)}

    def band(self, points: Points, level: float = 0.95) -> Interval:
        """Interval of the law itself at points, [M] each, in units of loss."""
        log_loss = self.fit.design(points).log_value(self.coefficients)
        return Interval(*np.exp(np.quantile(log_loss, _tails(level), axis=0)))


def bootstrap(fit: Fit, n_refits: int, seed: int) -> Refits:
    """Refit `n_refits` resamples of the runs. The same seed gives the same refits."""
    rng = np.random.default_rng(seed)
    counts_BM = resample(rng, n_refits, len(fit.table), fit.jacobian.shape[1] + 1)
    design = fit.design(fit.table.points)
    parts = [
        refit(design, fit.table.log_loss, counts_BM[low : low + _CHUNK], fit.centered)
        for low in range(0, n_refits, _CHUNK)
    ]
    coefficients, settled = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Refits(fit, coefficients, settled, seed)


def resample(rng: np.random.Generator, n_samples: int, n_runs: int, least: int) -> Array:
    """How often each run was drawn, float64 [n_samples, n_runs]; rows sum to n_runs.

    Samples with fewer than `least` different runs cannot determine the law and are drawn again.
    """
    counts = rng.multinomial(n_runs, np.full(n_runs, 1.0 / n_runs), size=n_samples)
    for _ in range(_MOST_DRAWS):
        poor = np.count_nonzero(counts, axis=1) < least
        if not poor.any():
            break
        counts[poor] = rng.multinomial(n_runs, np.full(n_runs, 1.0 / n_runs), size=poor.sum())
    return counts.astype(np.float64)


def refit(
    design: Design, log_loss: Array, weights: Array, start: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Weighted least squares for each row of weights [B, M], all begun at start [P].

    Returns coefficients [B, P] and whether each refit settled, [B].
    """
    state = _State.begin(design, log_loss, weights, start)
    for _ in range(_MAX_STEPS):
        active = np.flatnonzero(~state.settled)
        if not len(active):
            break
        _advance(state, active, design, log_loss, weights)
    return state.coefficients, state.settled


@dataclass
class _State:
    coefficients: Array  # [B, P]
    cost: Array  # [B], sum of weighted squares
    damping: Array  # [B]
    settled: NDArray[np.bool_]  # [B]

    @classmethod
    def begin(cls, design: Design, log_loss: Array, weights: Array, start: Array) -> _State:
        squares = (design.log_value(start) - log_loss) ** 2
        n_refits = len(weights)
        coefficients = np.tile(start, (n_refits, 1))
        damping = np.full(n_refits, _FIRST_DAMPING)
        return cls(coefficients, weights @ squares, damping, np.zeros(n_refits, dtype=bool))


def _advance(
    state: _State, active: NDArray[np.intp], design: Design, log_loss: Array, weights: Array
) -> None:
    """One damped Newton step of every active refit; only steps that lower its cost are taken."""
    at = state.coefficients[active]
    gradient, hessian = _derivatives(design, log_loss, weights[active], at, state.damping[active])
    trial = at - np.linalg.solve(hessian, gradient[..., None])[..., 0]
    residuals = design.log_value(trial) - log_loss
    cost = np.einsum("bm,bm->b", weights[active], residuals**2)
    gain = state.cost[active] - cost
    accepted = gain >= 0
    _accept(state, active[accepted], trial[accepted], cost[accepted])
    small = accepted & (gain <= _COST_TOLERANCE * state.cost[active])
    damping = state.damping[active] * np.where(accepted, 0.1, 10.0)
    state.damping[active] = np.maximum(damping, _LEAST_DAMPING)
    state.settled[active] = small | (damping > _MOST_DAMPING)


def _accept(state: _State, which: NDArray[np.intp], trial: Array, cost: Array) -> None:
    state.coefficients[which] = trial
    state.cost[which] = cost


def _derivatives(
    design: Design, log_loss: Array, weights: Array, at: Array, damping: Array
) -> tuple[Array, Array]:
    """Half the gradient [B, P] and half the damped Hessian [B, P, P] of the weighted squares."""
    value, jacobian = design.value_and_jacobian(at)
    pull = weights * (value - log_loss)
    weighted = (jacobian * weights[..., None]).swapaxes(-1, -2)
    gradient = (jacobian.swapaxes(-1, -2) @ pull[..., None])[..., 0]
    hessian = weighted @ jacobian
    scale = np.einsum("bpp->bp", hessian) + 1e-12
    hessian += design.curvature(jacobian, pull)
    np.einsum("bpp->bp", hessian)[...] += damping[:, None] * scale
    return gradient, hessian


def _tails(level: float) -> Array:
    return np.array([0.5 - level / 2, 0.5 + level / 2])
