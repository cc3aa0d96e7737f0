"""Power laws of one or two sizes at one k: L(n), L(C), L(n,D), and tokens to convergence D*(n)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from analysis.laws import starts
from analysis.laws.forms import CONSTANT, Array, Form, Points, Term
from analysis.laws.law import Law
from analysis.laws.limit import Limit, power_of
from analysis.laws.tokens import TOKENS_ALONE

_OF_N, _OF_FLOPS = power_of("n"), power_of("flops")
_BUDGET: Term = (CONSTANT, ("n",))


class FloorAndPower(Law):
    """E + A x^-b of one axis. The floor is exp of a coefficient, so it is never negative."""

    limit: ClassVar[Limit]
    floor_column: ClassVar[int | None] = 2
    parameter_names: ClassVar[tuple[str, ...]] = ("E", "A", "b")
    positive: ClassVar[tuple[str, ...]] = ("b",)
    scales: ClassVar[tuple[str, ...]] = ("E", "A")

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        level, slope, floor = np.moveaxis(coefficients, -1, 0)
        with np.errstate(over="ignore"):  # a refit's A may lie beyond any float: inf
            return np.stack([np.exp(floor), np.exp(level), -slope], axis=-1)

    def coefficients(self) -> Array:
        p = self.parameters
        return np.array([np.log(p["A"]), -p["b"], np.log(p["E"])])

    def coefficient_jacobian(self) -> Array:
        p = self.parameters
        return np.array([[0.0, 1 / p["A"], 0.0], [0.0, 0.0, -1.0], [1 / p["E"], 0.0, 0.0]])

    @classmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        return starts.limit_alone(cls.limit, logs, log_loss)


@dataclass(frozen=True)
class OfLatents(FloorAndPower):
    """L(n) = E + A n^-b at one k, each run trained to convergence (Gao et al. 2024)."""

    E: float
    A: float
    b: float

    name: ClassVar[str] = "l_n"
    title: ClassVar[str] = "L(n)"
    formula: ClassVar[str] = "L(n) = E + A n^-b"
    axes: ClassVar[tuple[str, ...]] = ("n",)
    constant_axes: ClassVar[tuple[str, ...]] = ("k", "tokens")
    limit: ClassVar[Limit] = _OF_N
    form: ClassVar[Form] = Form((_OF_N.terms,))
    units: ClassVar[Mapping[str, str]] = {"E": "loss", "A": "loss latents^b", "b": "1"}


@dataclass(frozen=True)
class OfCompute(FloorAndPower):
    """L(C) = E + A C^-b at one k: the lowest loss that C training FLOPs reach at any n (Gao et al.
    2024). It is fitted to the runs that no cheaper run beats."""

    E: float
    A: float
    b: float

    name: ClassVar[str] = "l_c"
    title: ClassVar[str] = "L(C)"
    formula: ClassVar[str] = "L(C) = E + A C^-b"
    axes: ClassVar[tuple[str, ...]] = ("flops",)
    constant_axes: ClassVar[tuple[str, ...]] = ("k",)
    limit: ClassVar[Limit] = _OF_FLOPS
    form: ClassVar[Form] = Form((_OF_FLOPS.terms,))
    units: ClassVar[Mapping[str, str]] = {"E": "loss", "A": "loss FLOPs^b", "b": "1"}
    frontier_axis: ClassVar[str | None] = "flops"


@dataclass(frozen=True)
class OfLatentsAndTokens(Law):
    """L(n,D) = E + A n^-a + B D^-b at one k: the form of Hoffmann et al. 2022, arXiv 2203.15556."""

    E: float
    A: float
    a: float
    B: float
    b: float

    name: ClassVar[str] = "l_nd"
    title: ClassVar[str] = "L(n,D)"
    formula: ClassVar[str] = "L(n,D) = E + A n^-a + B D^-b"
    axes: ClassVar[tuple[str, ...]] = ("n", "tokens")
    constant_axes: ClassVar[tuple[str, ...]] = ("k",)
    form: ClassVar[Form] = Form(((*_OF_N.terms, TOKENS_ALONE),))
    floor_column: ClassVar[int | None] = 2
    parameter_names: ClassVar[tuple[str, ...]] = ("E", "A", "a", "B", "b")
    positive: ClassVar[tuple[str, ...]] = ("a", "b")
    scales: ClassVar[tuple[str, ...]] = ("E", "A", "B")
    units: ClassVar[Mapping[str, str]] = {
        **{"E": "loss", "A": "loss latents^a", "a": "1", "B": "loss tokens^b", "b": "1"},
    }

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        on_n, slope_n, floor, on_tokens, slope_tokens = np.moveaxis(coefficients, -1, 0)
        with np.errstate(over="ignore"):  # a refit's A or B may lie beyond any float: inf
            scales = [np.exp(value) for value in (floor, on_n, on_tokens)]
        return np.stack([scales[0], scales[1], -slope_n, scales[2], -slope_tokens], axis=-1)

    def coefficients(self) -> Array:
        return np.array([np.log(self.A), -self.a, np.log(self.E), np.log(self.B), -self.b])

    def coefficient_jacobian(self) -> Array:
        jacobian = np.zeros((5, 5))
        jacobian[0, 1], jacobian[1, 2] = 1 / self.A, -1.0
        jacobian[2, 0] = 1 / self.E
        jacobian[3, 3], jacobian[4, 4] = 1 / self.B, -1.0
        return jacobian

    @classmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        return starts.plus_tokens(_OF_N, TOKENS_ALONE, logs, log_loss)


@dataclass(frozen=True)
class TokensToConvergence(Law):
    """D*(n) = D0 (n/n0)^s: tokens at which a run of n latents was converged, at one k. It is fitted
    to tokens and predicts tokens; Gao et al. 2024 have s = 0.6 (GPT-2 small) and 0.65 (GPT-4)."""

    D0: float
    s: float
    n0: float

    name: ClassVar[str] = "d_star"
    title: ClassVar[str] = "D*(n)"
    formula: ClassVar[str] = "D*(n) = D0 (n/n0)^s"
    axes: ClassVar[tuple[str, ...]] = ("n",)
    constant_axes: ClassVar[tuple[str, ...]] = ("k",)
    response: ClassVar[str] = "tokens"
    form: ClassVar[Form] = Form(((_BUDGET,),))
    parameter_names: ClassVar[tuple[str, ...]] = ("D0", "s")
    scales: ClassVar[tuple[str, ...]] = ("D0",)
    reference_names: ClassVar[tuple[str, ...]] = ("n",)
    units: ClassVar[Mapping[str, str]] = {"D0": "tokens", "s": "1"}

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        constant, s = np.moveaxis(coefficients, -1, 0)
        return np.stack([np.exp(constant + s * np.log(reference["n"])), s], axis=-1)

    def coefficients(self) -> Array:
        return np.array([np.log(self.D0) - self.s * np.log(self.n0), self.s])

    def coefficient_jacobian(self) -> Array:
        return np.array([[1 / self.D0, -np.log(self.n0)], [0.0, 1.0]])

    @classmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        return starts.straight_line(_BUDGET, logs, log_loss)
