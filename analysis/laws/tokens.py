"""Tokens in a law: the terms that hold them, and the tokens at which a law is near its limit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analysis.errors import TableError
from analysis.laws.forms import CONSTANT, Array, Form, Monomial, Term

TOKENS: Monomial = ("tokens",)
TOKENS_ALONE: Term = (CONSTANT, TOKENS)
TOKENS_BY_LATENTS: Term = (CONSTANT, ("n",), TOKENS)
_LAWS_WITH_A_LIMIT = "l_nkd, l_nkdu, l_nkd_additive or l_nd"


class TokenTerms(NamedTuple):
    """Columns of the term with tokens, of its factor's other terms, and of its slope in ln D."""

    term: slice
    others: tuple[slice, ...]
    slope: int


def token_terms(form: Form) -> TokenTerms:
    """Where the tokens stand.

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
            f"it nears its limit; use {_LAWS_WITH_A_LIMIT}."
        )
    slices, index, term = found[0]
    alone = len(slices) == 1
    if alone or [m for m in term if "tokens" in m] != [TOKENS]:
        raise TableError(
            f"this law's token term has no limit of endless training; use {_LAWS_WITH_A_LIMIT}."
        )
    others = tuple(s for i, s in enumerate(slices) if i != index)
    return TokenTerms(slices[index], others, slices[index].start + term.index(TOKENS))


def log_tokens_to(form: Form, at_one_token: Array, coefficients: Array, excess: float) -> Array:
    """ln D* [..., G]: tokens at which the token term is `excess` times the rest of its factor.

    That rest is 1 in [1 + (...)^c], and the limit itself in L + exp(tau) n^b D^-c: either way the
    loss is then (1 + excess) times its limit of endless training. Infinite where more tokens do not
    lower the loss. `at_one_token` are the features [G, P] of the points with ln D = 0, in the logs
    that `coefficients` [..., P] belong to. TableError as for `token_terms`.
    """
    where = token_terms(form)
    slope = coefficients[..., where.slope, None]
    tail, rest = _tail_and_rest(where, at_one_token, coefficients)
    with np.errstate(all="ignore"):  # slope -> 0: no number of tokens is enough
        found = (np.log(excess) + np.logaddexp.reduce(rest) - tail) / slope
    return np.where(slope < 0, found, np.inf)


def log_tokens_gradient(
    form: Form, at_one_token: Array, coefficients: Array, excess: float
) -> Array:
    """d ln D* / d coefficients, [G, P], for coefficients [P] whose slope in ln D is below 0."""
    where = token_terms(form)
    slope = coefficients[where.slope]
    _, rest = _tail_and_rest(where, at_one_token, coefficients)
    gradient = np.zeros_like(at_one_token)
    gradient[:, where.term] = -at_one_token[:, where.term]
    shares = np.exp(rest - np.logaddexp.reduce(rest))
    for columns, share in zip(where.others, shares, strict=True):
        gradient[:, columns] = share[:, None] * at_one_token[:, columns]
    gradient[:, where.slope] -= log_tokens_to(form, at_one_token, coefficients, excess)
    return gradient / slope


def _tail_and_rest(
    where: TokenTerms, at_one_token: Array, coefficients: Array
) -> tuple[Array, Array]:
    """Logs of the token term at one token [..., G] and of its factor's others [T, ..., G]."""

    def term(columns: slice) -> Array:
        return coefficients[..., columns] @ at_one_token[:, columns].T

    return term(where.term), np.stack([term(columns) for columns in where.others])
