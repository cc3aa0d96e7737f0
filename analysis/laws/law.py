"""Scaling laws as frozen, named values: predict, log-predict, analytic Jacobian.

A law is a small class: its form in plain logs, its parameters' names, how they follow from the
form's coefficients, and a few starting points from data. docs/laws.md shows how to add one.
Points are a mapping from axis ("n" = n_latents, "k", "tokens", "flops" = training FLOPs, "subject"
= parameters of the subject model) to float64 [M].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from analysis.laws.forms import Array, Form, Points


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
    # Axes that the law does not hold and that must not vary over the runs it is fitted to.
    constant_axes: ClassVar[tuple[str, ...]] = ("tokens",)
    response: ClassVar[str] = "loss"  # what is fitted: "loss" or "tokens" (to convergence)
    units: ClassVar[Mapping[str, str]] = {}  # unit of each parameter; "1" has none
    positive: ClassVar[tuple[str, ...]] = ()  # parameters that mean nothing at or below zero
    scales: ClassVar[tuple[str, ...]] = ()  # parameters that are exp of something: never below 0
    # Where set, the law is of the lowest loss at each level of this axis: of no run beaten by one
    # with less of it.
    frontier_axis: ClassVar[str | None] = None
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
        """Log of `predict`, [M]."""
        return self.form.design(logs_of(points, self.axes)).log_value(self.coefficients())

    def predict(self, points: Points) -> Array:
        """The response at points, [M]: L (normalized MSE), or tokens to convergence."""
        return np.exp(self.log_predict(points))

    def jacobian(self, points: Points) -> Array:
        """d ln L / d parameters, [M, P], in the order of `parameter_names`."""
        design = self.form.design(logs_of(points, self.axes))
        return design.value_and_jacobian(self.coefficients())[1] @ self.coefficient_jacobian()
