"""A law along a budget: loss against n where D = C / (FLOPs per token), and D* against n.

B = draws of coefficients, G = sizes n on a grid, P = coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.errors import TableError
from analysis.laws.forms import Array, Form, Points
from analysis.laws.law import Law
from analysis.planning.compute import Convention

_TOKENS = ("tokens",)


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
        token_term, others, slope_column = token_terms(self.law.form)
        rest = np.zeros(())
        if others:  # with no other term the factor would have no limit: token_terms refuses that
            terms = [coefficients[..., c] @ features[:, c].T for c in others]
            rest = np.logaddexp.reduce(np.stack(terms))
        at_one_token = coefficients[..., token_term] @ features[:, token_term].T
        slope = coefficients[..., slope_column, None]
        with np.errstate(all="ignore"):  # a slope of 0 reaches no limit: D* is infinite
            return (np.log(excess) + rest - at_one_token) / slope

    def _design(self, log_n: Array, log_tokens: Array):  # noqa: ANN202
        logs = {"n": log_n, "k": np.full_like(log_n, np.log(self.k)), "tokens": log_tokens}
        return self.law.form.design({axis: logs[axis] for axis in self.law.axes})

    def points(self, log_n: Array, log_tokens: Array) -> Points:
        """The same points as the law's axes, [G] each."""
        values = {"n": np.exp(log_n), "k": np.full_like(log_n, self.k)}
        values["tokens"] = np.exp(log_tokens)
        return {axis: values[axis] for axis in self.law.axes}


def token_terms(form: Form) -> tuple[slice, tuple[slice, ...], int]:
    """Columns of the one term with tokens, of its factor's other terms, and of its slope in ln D.

    Raises:
        TableError: tokens stand in several terms, in none, alone in a factor, or in a product.
    """
    found = [
        (slices, index, term)
        for factor, slices in zip(form.factors, form.columns(), strict=True)
        for index, term in enumerate(factor)
        if any("tokens" in monomial for monomial in term)
    ]
    if len(found) != 1:
        raise TableError(
            f"tokens stand in {len(found)} terms of this law, so it has no single budget at which "
            "it nears its limit; use l_nkd, l_nkdu, l_nkd_additive or l_nd."
        )
    slices, index, term = found[0]
    alone = len(slices) == 1
    if alone or [m for m in term if "tokens" in m] != [_TOKENS]:
        raise TableError(
            "this law's token term has no limit of endless training; use l_nkd, l_nkdu, "
            "l_nkd_additive or l_nd."
        )
    others = tuple(s for i, s in enumerate(slices) if i != index)
    return slices[index], others, slices[index].start + term.index(_TOKENS)
