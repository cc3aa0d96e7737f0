"""Which rows took their tokens to convergence: the column `converged`, that stopping rules write.

Tokens are a budget that was asked for, or what a run took to converge. Only the second are a
response: D*(n) fitted to budgets would be the law of whoever chose them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import pandas as pd

from analysis.errors import TableError

COLUMN = "converged"
_WORDS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_EMPTY = {"", "nan", "none", "null", "<na>"}


def stopped_by_rule(frame: pd.DataFrame, source: str) -> tuple[bool | None, ...] | None:
    """Whether its stopping rule ended each row; None for a row without a rule.

    None altogether where there is no such column. TableError where it holds something else.
    """
    if COLUMN not in frame:
        return None
    return tuple(_said(value, source) for value in frame[COLUMN])


def _said(value: Any, source: str) -> bool | None:
    # A column with gaps holds true, false and NaN, as Python or numpy values or as text.
    word = str(value).strip().lower()
    if word not in _WORDS and word not in _EMPTY:
        raise TableError(
            f"{source}: column {COLUMN} holds {value!r}; it says whether its stopping rule ended a "
            "run: true, false, or empty where there was no rule."
        )
    return _WORDS.get(word)


def not_converged(
    runs: Iterable[str], stopped: Sequence[bool | None], source: str
) -> list[tuple[str, str]]:
    """Each run whose tokens are none to convergence, and why. TableError where that is all."""
    _refuse_none_converged(stopped, source)
    rows = zip(runs, map(why_not, stopped), strict=True)
    return [(run, reason) for run, reason in rows if reason]


def why_not(stopped: bool | None) -> str:
    """Why a row's tokens are none to convergence; "" where they are."""
    if stopped is None:
        return f"{COLUMN} is empty: no stopping rule ended the run, so its tokens are a budget"
    return "" if stopped else f"{COLUMN} is false: the run came to its limit of tokens first"


def _refuse_none_converged(stopped: Sequence[bool | None], source: str) -> None:
    """TableError where no row is left to fit tokens of."""
    if not any(stopped):
        raise TableError(
            f"{source}: {COLUMN} is true for none of the {len(stopped)} finished runs, so the "
            "tokens of none are tokens to convergence. Train runs to convergence (train.stop.fall; "
            "sweeps/to_convergence.yaml), or give train.tokens a higher limit."
        )


def refuse_budgets(frame: pd.DataFrame, tokens: str, source: str) -> None:
    """TableError where `tokens` can only be budgets: several for one n, or one for all n."""
    sizes = ["n_latents" if "n_latents" in frame else "n", "k"]
    values = pd.Series(pd.to_numeric(frame[tokens], errors="coerce"), index=frame.index)
    remedy = (
        f"Tokens to convergence are what D*(n) is fitted to: name them in a column {COLUMN} (true "
        "for runs that their stopping rule ended), or give them as tokens_to_convergence."
    )
    groups = dict(list(values.groupby([frame[name] for name in sizes])))
    for cell, part in groups.items():
        if part.nunique() > 1:
            n, k = cast("tuple[float, float]", cell)
            raise TableError(
                f"{source} has several tokens at n = {n}, k = {k} ({part.min():g} to "
                f"{part.max():g}), and nothing says which of them a run took to converge. {remedy}"
            )
    if len(groups) > 1 and values.nunique() == 1:
        raise TableError(
            f"{source} has the same tokens at every n ({values.iloc[0]:g}): a budget that was "
            f"asked for. {remedy}"
        )
