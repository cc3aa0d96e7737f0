"""A law along a budget: loss against n where D = C / (FLOPs per token), and D* against n.

B = draws of coefficients, G = sizes n on a grid, P = coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws.forms import Array, Design, Points
from analysis.laws.law import Law
from analysis.laws.tokens import log_tokens_to
from analysis.planning.compute import Convention


@dataclass(frozen=True)
class Profile:
    """One law at one k under one convention. `k` also prices a law that does not hold k."""

    law: type[Law]
    k: float
    convention: Convention

    def log_tokens(self, log_n: Array, budget: float) -> Array:
        """ln D that a budget [FLOPs] leaves at each n, [G]."""
        return np.log(budget) - self.log_cost(log_n)

    def log_cost(self, log_n: Array) -> Array:
        """ln of the FLOPs per token, [G]."""
        return np.log(self.convention.per_token(np.exp(log_n), self.k))

    def log_loss(self, coefficients: Array, log_n: Array, log_tokens: Array) -> Array:
        """ln L [..., G] for coefficients [..., P] in plain logs."""
        return self._design(log_n, log_tokens).log_value(coefficients)

    def log_tokens_to(self, coefficients: Array, log_n: Array, excess: float) -> Array:
        """ln D* [..., G]: tokens at which the loss is (1 + excess) times its limit of endless
        training. TableError for a law whose tokens stand in more than one term."""
        features = self._design(log_n, np.zeros_like(log_n)).features_MP
        return log_tokens_to(self.law.form, features, coefficients, excess)

    def _design(self, log_n: Array, log_tokens: Array) -> Design:
        logs = {"n": log_n, "k": np.full_like(log_n, np.log(self.k)), "tokens": log_tokens}
        return self.law.form.design({axis: logs[axis] for axis in self.law.axes})

    def points(self, log_n: Array, log_tokens: Array) -> Points:
        """The same points as the law's axes, [G] each."""
        values = {"n": np.exp(log_n), "k": np.full_like(log_n, self.k)}
        values["tokens"] = np.exp(log_tokens)
        return {axis: values[axis] for axis in self.law.axes}
