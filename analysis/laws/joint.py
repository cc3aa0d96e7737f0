"""L(n,k) of Gao et al. 2024 and its extensions to runs that are not trained to convergence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from analysis.laws import starts
from analysis.laws.forms import CONSTANT, ONE, Array, Form, Points, Term
from analysis.laws.law import Law

_LATENTS_AND_K: tuple[Term, Term] = (
    (CONSTANT, ("k",), ("n",), ("k", "n")),
    (CONSTANT, ("k",)),
)


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
    constant_axes: ClassVar[tuple[str, ...]] = ()
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
    constant_axes: ClassVar[tuple[str, ...]] = ()
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
