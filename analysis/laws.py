"""Scaling laws as frozen, named values: predict, log-predict, analytic Jacobian.

A law is a small class: its form in plain logs, its parameters' names, how they follow from the
form's coefficients, and a few starting points from data. docs/laws.md shows how to add one.
Points are a mapping from axis ("n" = n_latents, "k", "tokens") to float64 [M].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from analysis import starts
from analysis.forms import CONSTANT, ONE, Array, Form, Points, Term

_LATENTS_AND_K: tuple[Term, Term] = (
    (CONSTANT, ("k",), ("n",), ("k", "n")),
    (CONSTANT, ("k",)),
)


def logs_of(points: Points, axes: Sequence[str]) -> dict[str, Array]:
    return {axis: np.log(np.asarray(points[axis], dtype=np.float64)) for axis in axes}


@dataclass(frozen=True)
class Law(ABC):
    """Fields are the parameters in the order of `parameter_names`, then the reference sizes."""

    name: ClassVar[str]
    title: ClassVar[str]
    formula: ClassVar[str]
    axes: ClassVar[tuple[str, ...]]
    form: ClassVar[Form]
    parameter_names: ClassVar[tuple[str, ...]]
    reference_names: ClassVar[tuple[str, ...]] = ()  # axes whose reference size the law states
    floor_column: ClassVar[int | None] = None  # coefficient that is the log of the floor

    @classmethod
    @abstractmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        """Named parameters [..., P] from the form's coefficients [..., P] in plain logs."""

    @abstractmethod
    def coefficients(self) -> Array:
        """The form's coefficients [P] in plain logs."""

    @abstractmethod
    def coefficient_jacobian(self) -> Array:
        """[P, P]: d coefficients / d parameters."""

    @classmethod
    @abstractmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        """Deterministic starts [S, P] in the logs given (centered by the caller), from data."""

    @classmethod
    def from_coefficients(cls, coefficients: Array, reference: Mapping[str, float]) -> Self:
        values = cls.parameters_from(coefficients, reference).tolist()
        sizes = {f"{axis}0": float(reference[axis]) for axis in cls.reference_names}
        return cls(**dict(zip(cls.parameter_names, values, strict=True)), **sizes)

    @property
    def parameters(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.parameter_names}

    @property
    def reference(self) -> dict[str, float]:
        """Reference sizes stated with the parameters, for example {"n0": 1024.0}."""
        return {f"{axis}0": getattr(self, f"{axis}0") for axis in self.reference_names}

    def log_predict(self, points: Points) -> Array:
        """ln L at points, [M]."""
        return self.form.design(logs_of(points, self.axes)).log_value(self.coefficients())

    def predict(self, points: Points) -> Array:
        """L (normalized MSE) at points, [M]."""
        return np.exp(self.log_predict(points))

    def jacobian(self, points: Points) -> Array:
        """d ln L / d parameters, [M, P], in the order of `parameter_names`."""
        design = self.form.design(logs_of(points, self.axes))
        return design.value_and_jacobian(self.coefficients())[1] @ self.coefficient_jacobian()


@dataclass(frozen=True)
class LatentsAndK(Law):
    """L(n,k), Gao et al. 2024 (arXiv 2406.04093), section 3: the joint law of latents and k."""

    alpha: float
    beta_k: float
    beta_n: float
    gamma: float
    zeta: float
    eta: float

    name: ClassVar[str] = "l_nk"
    title: ClassVar[str] = "L(n,k)"
    formula: ClassVar[str] = (
        "L(n,k) = exp(alpha + beta_k ln k + beta_n ln n + gamma ln k ln n) + exp(zeta + eta ln k)"
    )
    axes: ClassVar[tuple[str, ...]] = ("n", "k")
    form: ClassVar[Form] = Form((_LATENTS_AND_K,))
    floor_column: ClassVar[int | None] = 4
    parameter_names: ClassVar[tuple[str, ...]] = (
        *("alpha", "beta_k", "beta_n", "gamma"),
        *("zeta", "eta"),
    )

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        return coefficients

    def coefficients(self) -> Array:
        return np.array(list(self.parameters.values()))

    def coefficient_jacobian(self) -> Array:
        return np.eye(len(self.parameter_names))

    @classmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        return starts.latents_and_k(logs, log_loss)


@dataclass(frozen=True)
class LatentsKTokens(LatentsAndK):
    """L(n,k,D) = L(n,k) [1 + (D0 (n/n0)^s / D)^c]: D tokens; D -> infinity gives L(n,k).

    D0 [tokens] is where a run at n0 latents sits at twice its limit; s is the exponent of the
    token budget n needs, comparable with the paper's tokens to convergence ~ n^0.6.
    """

    D0: float
    s: float
    c: float
    n0: float

    name: ClassVar[str] = "l_nkd"
    title: ClassVar[str] = "L(n,k,D)"
    formula: ClassVar[str] = "L(n,k,D) = L(n,k) * [1 + (D0 (n/n0)^s / D)^c]"
    axes: ClassVar[tuple[str, ...]] = ("n", "k", "tokens")
    form: ClassVar[Form] = Form((_LATENTS_AND_K, (ONE, (CONSTANT, ("n",), ("tokens",)))))
    parameter_names: ClassVar[tuple[str, ...]] = (*LatentsAndK.parameter_names, "D0", "s", "c")
    reference_names: ClassVar[tuple[str, ...]] = ("n",)

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        constant, on_n, on_tokens = np.moveaxis(coefficients[..., 6:9], -1, 0)
        c = -on_tokens
        with np.errstate(all="ignore"):  # c -> 0 has no token scale: D0 is then inf or 0
            scale = np.exp((constant + on_n * np.log(reference["n"])) / c)
            rest = np.stack([scale, on_n / c, c], axis=-1)
        return np.concatenate([coefficients[..., :6], rest], axis=-1)

    def coefficients(self) -> Array:
        constant = self.c * (np.log(self.D0) - self.s * np.log(self.n0))
        return np.append(super().coefficients()[:6], [constant, self.c * self.s, -self.c])

    def coefficient_jacobian(self) -> Array:
        jacobian = np.eye(9)
        log_scale, log_n0 = np.log(self.D0), np.log(self.n0)
        jacobian[6, 6:] = [self.c / self.D0, -self.c * log_n0, log_scale - self.s * log_n0]
        jacobian[7, 6:] = [0.0, self.c, self.s]
        jacobian[8, 6:] = [0.0, 0.0, -1.0]
        return jacobian

    @classmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        return starts.with_tokens(logs, log_loss)


@dataclass(frozen=True)
class LatentsKTokensTilted(LatentsKTokens):
    """L(n,k,D) = L(n,k) [1 + (D0 (n/n0)^s / D)^c (k/k0)^u]: u > 0 means that a larger k is
    further from convergence at equal tokens."""

    u: float
    k0: float

    name: ClassVar[str] = "l_nkdu"
    title: ClassVar[str] = "L(n,k,D) with u"
    formula: ClassVar[str] = "L(n,k,D) = L(n,k) * [1 + (D0 (n/n0)^s / D)^c (k/k0)^u]"
    form: ClassVar[Form] = Form((_LATENTS_AND_K, (ONE, (CONSTANT, ("n",), ("tokens",), ("k",)))))
    parameter_names: ClassVar[tuple[str, ...]] = (*LatentsKTokens.parameter_names, "u")
    reference_names: ClassVar[tuple[str, ...]] = ("n", "k")

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        u = coefficients[..., 9]
        at_k0 = coefficients[..., :9].copy()
        at_k0[..., 6] += u * np.log(reference["k"])
        parameters = super().parameters_from(at_k0, reference)
        return np.concatenate([parameters, u[..., None]], axis=-1)

    def coefficients(self) -> Array:
        coefficients = np.append(super().coefficients(), self.u)
        coefficients[6] -= self.u * np.log(self.k0)
        return coefficients

    def coefficient_jacobian(self) -> Array:
        jacobian = np.eye(10)
        jacobian[:9, :9] = super().coefficient_jacobian()
        jacobian[6, 9] = -np.log(self.k0)
        return jacobian

    @classmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        plain = starts.with_tokens(logs, log_loss)
        return np.column_stack([plain, np.zeros(len(plain))])


@dataclass(frozen=True)
class LatentsKPlusTokens(LatentsAndK):
    """L(n,k,D) = L(n,k) + exp(tau) n^b D^-c: the rival of l_nkd, whose excess does not shrink with
    the limit. As many parameters; D -> infinity gives L(n,k) too."""

    tau: float
    b: float
    c: float

    name: ClassVar[str] = "l_nkd_additive"
    title: ClassVar[str] = "L(n,k,D) additive"
    formula: ClassVar[str] = "L(n,k,D) = L(n,k) + exp(tau) n^b D^-c"
    axes: ClassVar[tuple[str, ...]] = ("n", "k", "tokens")
    form: ClassVar[Form] = Form(((*_LATENTS_AND_K, (CONSTANT, ("n",), ("tokens",))),))
    parameter_names: ClassVar[tuple[str, ...]] = (*LatentsAndK.parameter_names, "tau", "b", "c")

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        return coefficients * cls._signs()

    def coefficients(self) -> Array:
        return super().coefficients() * self._signs()

    def coefficient_jacobian(self) -> Array:
        return np.diag(self._signs())

    @classmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        return starts.plus_tokens(logs, log_loss)

    @classmethod
    def _signs(cls) -> Array:
        """The form has -c where the law has c."""
        return np.where(np.array(cls.parameter_names) == "c", -1.0, 1.0)


LAWS: dict[str, type[Law]] = {
    law.name: law for law in (LatentsAndK, LatentsKTokens, LatentsKTokensTilted, LatentsKPlusTokens)
}
