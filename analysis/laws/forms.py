"""Products of sums of exponentials of linear forms in logs: the shape every law here has.

A law such as L(n,k) = exp(alpha + beta_k ln k + ...) + exp(zeta + eta ln k) is, in the logs of
its axes, a log-sum-exp of LINEAR forms, and a factor [1 + (...)^c] is one more of them. Its value,
its Jacobian and its behavior under centering then need no code of their own.

Legend: B = batch of coefficient vectors, M = points, P = coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Points: TypeAlias = Mapping[str, Array]
Monomial: TypeAlias = tuple[str, ...]
Term: TypeAlias = tuple[Monomial, ...]

CONSTANT: Monomial = ()
ONE: Term = ()  # exp of nothing: the 1 in [1 + ...]


@dataclass(frozen=True)
class Form:
    """prod over factors of (sum over terms of exp(sum of coefficient * product of logs)).

    A monomial is the axes whose logs are multiplied: () is the constant, ("k", "n") is ln k ln n.
    Coefficients are numbered factor by factor, term by term, monomial by monomial.
    """

    factors: tuple[tuple[Term, ...], ...]

    @property
    def monomials(self) -> tuple[Monomial, ...]:
        return tuple(m for factor in self.factors for term in factor for m in term)

    def columns(self) -> tuple[tuple[slice, ...], ...]:
        """Where each term's coefficients lie, factor by factor."""
        sizes = [len(term) for factor in self.factors for term in factor]
        edges = [0, *np.cumsum(sizes).tolist()]
        slices = iter(slice(low, high) for low, high in pairwise(edges))
        return tuple(tuple(next(slices) for _ in factor) for factor in self.factors)

    def design(self, logs: Points) -> Design:
        """The linear forms of this law at given logs (axis -> float64 [M])."""
        n_points = len(next(iter(logs.values())))
        features_MP = np.ones((n_points, len(self.monomials)))
        for column, monomial in enumerate(self.monomials):
            for axis in monomial:
                features_MP[:, column] *= logs[axis]
        return Design(features_MP, self.columns())

    def uncenter(self, center: Mapping[str, float]) -> Array:
        """[P, P] matrix from coefficients in logs minus `center` to coefficients in plain logs.

        A product of centered logs expands into products of fewer plain logs, so each term must
        hold every sub-product of its monomials; all laws here do.
        """
        matrix_PP = np.zeros((len(self.monomials),) * 2)
        for slices, factor in zip(self.columns(), self.factors, strict=True):
            for columns, term in zip(slices, factor, strict=True):
                matrix_PP[columns, columns] = _expand(term, center)
        return matrix_PP


def _expand(term: Term, center: Mapping[str, float]) -> Array:
    matrix = np.zeros((len(term), len(term)))
    for row, plain in enumerate(term):
        for column, centered in enumerate(term):
            if set(plain) <= set(centered):
                lost = set(centered) - set(plain)
                matrix[row, column] = np.prod([-center[axis] for axis in lost])
    return matrix


@dataclass(frozen=True)
class Design:
    """A form at fixed points: features float64 [M, P] and the columns of each term."""

    features_MP: Array
    columns: tuple[tuple[slice, ...], ...]

    def log_value(self, coefficients: Array) -> Array:
        """Log of the form: coefficients [..., P] -> float64 [..., M]."""
        factors = (np.logaddexp.reduce(self._terms(coefficients, c)) for c in self.columns)
        return sum(factors, np.zeros(()))

    def value_and_jacobian(self, coefficients: Array) -> tuple[Array, Array]:
        """Log of the form [..., M] and its derivative by the coefficients [..., M, P]."""
        total = np.zeros(())
        jacobian = np.empty((*coefficients.shape[:-1], *self.features_MP.shape))
        for columns in self.columns:
            terms = self._terms(coefficients, columns)
            log_factor = np.logaddexp.reduce(terms)
            total = total + log_factor
            for term, where in zip(terms, columns, strict=True):
                # d log-sum-exp = the term's share of its factor, times the feature.
                share = np.exp(term - log_factor)[..., None]
                jacobian[..., where] = share * self.features_MP[:, where]
        return total, jacobian

    def curvature(self, jacobian: Array, weights: Array) -> Array:
        """Sum over points of weight * second derivative of the log: [B, P, P].

        `jacobian` [B, M, P] is that of the same coefficients; weights are [B, M]. The second
        derivative of a log-sum-exp is the spread of its features under the terms' shares.
        """
        total = np.zeros((*jacobian.shape[:-2], *jacobian.shape[-1:] * 2))
        for columns in self.columns:
            factor = slice(columns[0].start, columns[-1].stop)
            weighted = (jacobian[..., factor] * weights[..., None]).swapaxes(-1, -2)
            total[..., factor, factor] -= weighted @ jacobian[..., factor]
            for where in columns:
                rows = slice(where.start - factor.start, where.stop - factor.start)
                total[..., where, where] += weighted[..., rows, :] @ self.features_MP[:, where]
        return total

    def _terms(self, coefficients: Array, columns: tuple[slice, ...]) -> Array:
        return np.stack([coefficients[..., c] @ self.features_MP[:, c].T for c in columns])
