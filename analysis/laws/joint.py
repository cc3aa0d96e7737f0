"""L(n,k) of Gao et al. 2024, its extensions to runs that are not trained to convergence, and l_s.

What a law does (`OfSizes`, `TimesTokens`, ...) stands apart from its parameters, so that a nested
rival (analysis/laws/nested.py) is the same behavior with fewer of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from analysis.laws import starts
from analysis.laws.forms import ONE, Array, Form, Points, Term
from analysis.laws.law import Law
from analysis.laws.limit import Limit, latents_and
from analysis.laws.tokens import TOKENS_BY_LATENTS

LIMIT = latents_and("k")
_SUBJECT_LIMIT = latents_and("subject")
_TILTED: Term = (*TOKENS_BY_LATENTS, ("k",))
_UNITS = {
    **{"alpha": "ln loss", "beta_k": "1", "beta_s": "1", "beta_n": "1", "gamma": "1"},
    **{"zeta": "ln loss", "eta": "1", "D0": "tokens", "s": "1", "c": "1", "u": "1"},
    **{"tau": "ln (loss tokens^c / latents^b)", "b": "1"},
}


class OfSizes(Law):
    """Laws whose parameters are the coefficients of a limit."""

    limit: ClassVar[Limit]
    units: ClassVar[Mapping[str, str]] = _UNITS

    @classmethod
    def form_with(cls, limit: Limit) -> Form:
        return Form((limit.terms,))

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        return coefficients

    def coefficients(self) -> Array:
        return np.array(list(self.parameters.values()))

    def coefficient_jacobian(self) -> Array:
        return np.eye(len(self.parameter_names))

    @classmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        return starts.limit_alone(cls.limit, logs, log_loss)


class TimesTokens(OfSizes):
    """Laws of a limit times [1 + (D0 (n/n0)^s / D)^c]."""

    axes: ClassVar[tuple[str, ...]] = ("n", "k", "tokens")
    constant_axes: ClassVar[tuple[str, ...]] = ()
    reference_names: ClassVar[tuple[str, ...]] = ("n",)
    positive: ClassVar[tuple[str, ...]] = ("c",)
    tail: ClassVar[Term] = TOKENS_BY_LATENTS
    scales: ClassVar[tuple[str, ...]] = ("D0",)

    @classmethod
    def form_with(cls, limit: Limit) -> Form:
        return Form((limit.terms, (ONE, cls.tail)))

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        first = len(cls.limit.names)
        constant, on_n, on_tokens = np.moveaxis(coefficients[..., first : first + 3], -1, 0)
        c = -on_tokens
        with np.errstate(all="ignore"):  # c -> 0 has no token scale: D0 is then inf or 0
            scale = np.exp((constant + on_n * np.log(reference["n"])) / c)
            rest = np.stack([scale, on_n / c, c], axis=-1)
        return np.concatenate([coefficients[..., :first], rest], axis=-1)

    def coefficients(self) -> Array:
        p = self.parameters
        constant = p["c"] * (np.log(p["D0"]) - p["s"] * np.log(self.reference["n0"]))
        limit = [p[name] for name in self.limit.names]
        return np.array([*limit, constant, p["c"] * p["s"], -p["c"]])

    def coefficient_jacobian(self) -> Array:
        first = len(self.limit.names)
        scale, s, c = (self.parameters[name] for name in ("D0", "s", "c"))
        log_scale, log_n0 = np.log(scale), np.log(self.reference["n0"])
        jacobian = np.eye(first + 3)
        jacobian[first:, first:] = [
            [c / scale, -c * log_n0, log_scale - s * log_n0],
            [0.0, c, s],
            [0.0, 0.0, -1.0],
        ]
        return jacobian

    @classmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        return starts.times_tokens(cls.limit, cls.tail, logs, log_loss)


class TimesTokensTilted(TimesTokens):
    """Laws of a limit times [1 + (D0 (n/n0)^s / D)^c (k/k0)^u]."""

    reference_names: ClassVar[tuple[str, ...]] = ("n", "k")
    tail: ClassVar[Term] = _TILTED

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        u = coefficients[..., -1]
        at_k0 = coefficients[..., :-1].copy()
        at_k0[..., -3] += u * np.log(reference["k"])
        parameters = super().parameters_from(at_k0, reference)
        return np.concatenate([parameters, u[..., None]], axis=-1)

    def coefficients(self) -> Array:
        u = self.parameters["u"]
        coefficients = np.append(super().coefficients(), u)
        coefficients[-4] -= u * np.log(self.reference["k0"])
        return coefficients

    def coefficient_jacobian(self) -> Array:
        jacobian = np.eye(len(self.parameter_names))
        jacobian[:-1, :-1] = super().coefficient_jacobian()
        jacobian[-4, -1] = -np.log(self.reference["k0"])
        return jacobian


@dataclass(frozen=True)
class LatentsAndK(OfSizes):
    """L(n,k), Gao et al. 2024 (arXiv 2406.04093), section 3: the joint law of latents and k."""

    alpha: float
    beta_k: float
    beta_n: float
    gamma: float
    zeta: float
    eta: float

    name: ClassVar[str] = "l_nk"
    title: ClassVar[str] = "L(n,k)"
    formula: ClassVar[str] = f"L(n,k) = {LIMIT.formula}"
    axes: ClassVar[tuple[str, ...]] = ("n", "k")
    limit: ClassVar[Limit] = LIMIT
    form: ClassVar[Form] = OfSizes.form_with(LIMIT)
    floor_column: ClassVar[int | None] = LIMIT.floor_column
    parameter_names: ClassVar[tuple[str, ...]] = LIMIT.names


@dataclass(frozen=True)
class LatentsKTokens(TimesTokens):
    """L(n,k,D) = L(n,k) [1 + (D0 (n/n0)^s / D)^c]: D tokens; D -> infinity gives L(n,k).

    D0 [tokens] is where a run at n0 latents sits at twice its limit; s is the exponent of the
    token budget n needs, comparable with the paper's tokens to convergence ~ n^0.6.
    """

    alpha: float
    beta_k: float
    beta_n: float
    gamma: float
    zeta: float
    eta: float
    D0: float
    s: float
    c: float
    n0: float

    name: ClassVar[str] = "l_nkd"
    title: ClassVar[str] = "L(n,k,D)"
    formula: ClassVar[str] = "L(n,k,D) = L(n,k) * [1 + (D0 (n/n0)^s / D)^c]"
    limit: ClassVar[Limit] = LIMIT
    form: ClassVar[Form] = TimesTokens.form_with(LIMIT)
    floor_column: ClassVar[int | None] = LIMIT.floor_column
    parameter_names: ClassVar[tuple[str, ...]] = (*LIMIT.names, "D0", "s", "c")


@dataclass(frozen=True)
class LatentsKTokensTilted(TimesTokensTilted):
    """L(n,k,D) = L(n,k) [1 + (D0 (n/n0)^s / D)^c (k/k0)^u]: u > 0 means that a larger k is
    further from convergence at equal tokens."""

    alpha: float
    beta_k: float
    beta_n: float
    gamma: float
    zeta: float
    eta: float
    D0: float
    s: float
    c: float
    u: float
    n0: float
    k0: float

    name: ClassVar[str] = "l_nkdu"
    title: ClassVar[str] = "L(n,k,D) with u"
    formula: ClassVar[str] = "L(n,k,D) = L(n,k) * [1 + (D0 (n/n0)^s / D)^c (k/k0)^u]"
    limit: ClassVar[Limit] = LIMIT
    form: ClassVar[Form] = TimesTokensTilted.form_with(LIMIT)
    floor_column: ClassVar[int | None] = LIMIT.floor_column
    parameter_names: ClassVar[tuple[str, ...]] = (*LIMIT.names, "D0", "s", "c", "u")


@dataclass(frozen=True)
class LatentsKPlusTokens(OfSizes):
    """L(n,k,D) = L(n,k) + exp(tau) n^b D^-c: the rival of l_nkd, whose excess does not shrink with
    the limit. As many parameters; D -> infinity gives L(n,k) too."""

    alpha: float
    beta_k: float
    beta_n: float
    gamma: float
    zeta: float
    eta: float
    tau: float
    b: float
    c: float

    name: ClassVar[str] = "l_nkd_additive"
    title: ClassVar[str] = "L(n,k,D) additive"
    formula: ClassVar[str] = "L(n,k,D) = L(n,k) + exp(tau) n^b D^-c"
    axes: ClassVar[tuple[str, ...]] = ("n", "k", "tokens")
    constant_axes: ClassVar[tuple[str, ...]] = ()
    limit: ClassVar[Limit] = LIMIT
    form: ClassVar[Form] = Form(((*LIMIT.terms, TOKENS_BY_LATENTS),))
    floor_column: ClassVar[int | None] = LIMIT.floor_column
    parameter_names: ClassVar[tuple[str, ...]] = (*LIMIT.names, "tau", "b", "c")
    positive: ClassVar[tuple[str, ...]] = ("c",)

    @classmethod
    def parameters_from(cls, coefficients: Array, reference: Mapping[str, float]) -> Array:
        return coefficients * cls._signs()

    def coefficients(self) -> Array:
        return super().coefficients() * self._signs()

    def coefficient_jacobian(self) -> Array:
        return np.diag(self._signs())

    @classmethod
    def starting_coefficients(cls, logs: Points, log_loss: Array) -> Array:
        return starts.plus_tokens(cls.limit, TOKENS_BY_LATENTS, logs, log_loss)

    @classmethod
    def _signs(cls) -> Array:
        """The form has -c where the law has c."""
        return np.where(np.array(cls.parameter_names) == "c", -1.0, 1.0)


@dataclass(frozen=True)
class LatentsAndSubject(OfSizes):
    """L_s(n) at one k over subject models of S parameters: l_nk with S in the place of k."""

    alpha: float
    beta_s: float
    beta_n: float
    gamma: float
    zeta: float
    eta: float

    name: ClassVar[str] = "l_s"
    title: ClassVar[str] = "L_s(n)"
    formula: ClassVar[str] = f"L_s(n) = {_SUBJECT_LIMIT.formula}"
    axes: ClassVar[tuple[str, ...]] = ("n", "subject")
    constant_axes: ClassVar[tuple[str, ...]] = ("k", "tokens")
    limit: ClassVar[Limit] = _SUBJECT_LIMIT
    form: ClassVar[Form] = OfSizes.form_with(_SUBJECT_LIMIT)
    floor_column: ClassVar[int | None] = _SUBJECT_LIMIT.floor_column
    parameter_names: ClassVar[tuple[str, ...]] = _SUBJECT_LIMIT.names
