"""Which runs are shown converged, by token ladders or by their own curves: a table of those.

A law of converged runs may take runs of several token budgets, but only these. Annealed runs are
judged by ladders alone: the end of an annealed curve falls by its schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.counts import short_count
from analysis.errors import TableError
from analysis.judgement.convergence import SETTLED_FALL, fall_per_doubling, mean_by
from analysis.judgement.curves import last_doubling
from analysis.records.stopped import why_not
from analysis.records.table import Dropped, RunTable

RULE = (
    f"twice the tokens bought at most {SETTLED_FALL:.0%} of the loss: shown by longer runs of the "
    "same n and k, or by the last doubling of tokens of a run at a constant learning rate, judged "
    "here or by its stopping rule"
)
_Cell = tuple[float, float]


class Verdict(NamedTuple):
    """What showed a run converged ("ladder", "curve", "stopping rule"), or why nothing did."""

    shown_by: str  # "" where nothing showed it
    reason: str


@dataclass(frozen=True)
class Settled:
    """A verdict per run of a table, in its order."""

    table: RunTable
    verdicts: tuple[Verdict, ...]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Runs shown converged, [M]."""
        return np.array([bool(v.shown_by) for v in self.verdicts], dtype=bool)

    @property
    def message(self) -> str:
        kept, cells = int(self.mask.sum()), len(_cells(self.table.select(self.mask)))
        text = (
            f"{kept} of {len(self.table)} runs, in {cells} of {len(_cells(self.table))} cells "
            f"(n, k), are shown converged ({RULE})"
        )
        if not kept or kept == len(self.table):
            return f"{text}."
        n_all, n_kept = (t.points["n"] for t in (self.table, self.table.select(self.mask)))
        lost = n_kept.max() < n_all.max()
        span = f" The largest n among them is {n_kept.max():.0f}, of {n_all.max():.0f} trained."
        return f"{text}.{span if lost else ''}"

    def json(self) -> dict[str, Any]:
        rows = zip(self.table.runs, self.verdicts, strict=True)
        runs = [{"run": run, **verdict._asdict()} for run, verdict in rows]
        return {"rule": RULE, "message": self.message, "runs": runs}


class Selection(NamedTuple):
    """The runs shown converged as a table that laws of converged runs take, and those left out."""

    table: RunTable
    dropped: tuple[Dropped, ...]


def converged_runs(table: RunTable, curves: pd.DataFrame | None = None) -> Settled:
    """Judge every run. TableError where the table has no tokens.

    `curves` are rows of logged steps as `records.load_curves` gives them: run_id, tokens, train/lr,
    eval/LOSS or train/normalized_mse. A run is converged if doubling the tokens of its cell bought
    at most SETTLED_FALL at its budget and at every larger one, and lost no more than that either;
    or, where no longer run contradicts it, if its own curve fell by no more in its last doubling or
    such a rule ended it (`RunTable.stopped`).
    """
    if "tokens" not in table.points:
        raise TableError(
            "whether runs are converged cannot be told without tokens; add the column tokens."
        )
    by_ladder = _ladder_verdicts(table)
    own = {} if curves is None else {str(r): c for r, c in curves.groupby("run_id")}
    verdicts = []
    cells = (table.points[axis].tolist() for axis in ("n", "k", "tokens"))
    stopped = table.stopped or (None,) * len(table)
    for run, ended, n, k, tokens in zip(table.runs, stopped, *cells, strict=True):
        verdict, contradicted = by_ladder[n, k][tokens]
        if not (verdict.shown_by or contradicted):
            verdict = _own_verdict(ended, own.get(run), table.loss_name) or verdict
        verdicts.append(verdict)
    return Settled(table, tuple(verdicts))


def _own_verdict(stopped: bool | None, curve: pd.DataFrame | None, loss: str) -> Verdict | None:
    """What a run says of itself; None where it has neither a stopping rule nor a curve."""
    if stopped:
        return Verdict("stopping rule", "")
    if curve is not None:
        return _curve_verdict(curve, loss)
    return None if stopped is None else Verdict("", why_not(stopped))


def select_converged(table: RunTable, curves: pd.DataFrame | None = None) -> Selection:
    """Only the runs shown converged. TableError where there are none.

    The table's `dropped` names the others with their reasons, its `shown_converged` the rule.
    """
    settled = converged_runs(table, curves)
    if not settled.mask.any():
        reasons = sorted({v.reason for v in settled.verdicts})
        more = f" (and {len(reasons) - 3} more reasons)" if len(reasons) > 3 else ""
        raise TableError(
            f"none of the {len(table)} runs is shown converged: {'; '.join(reasons[:3])}{more}. "
            "Train longer runs of the same n and k, or fit a law that holds tokens (l_nkd)."
        )
    rows = zip(table.runs, settled.verdicts, strict=True)
    dropped = tuple(Dropped(run, f"not shown converged: {v.reason}") for run, v in rows if v.reason)
    kept = table.select(settled.mask)
    return Selection(
        replace(kept, dropped=(*table.dropped, *dropped), shown_converged=RULE), dropped
    )


def _ladder_verdicts(table: RunTable) -> dict[_Cell, dict[float, tuple[Verdict, bool]]]:
    """By cell (n, k) and budget: the verdict, and whether longer runs contradict convergence."""
    verdicts: dict[_Cell, dict[float, tuple[Verdict, bool]]] = {}
    for _, rows in mean_by(table, ["n", "k", "tokens"]).groupby(["n", "k"]):
        n, k, budgets, losses = (rows[c].to_list() for c in ("n", "k", "tokens", "log_loss"))
        verdicts[n[0], k[0]] = _judge_ladder(budgets, losses)
    return verdicts


def _judge_ladder(budgets: list[float], losses: list[float]) -> dict[float, tuple[Verdict, bool]]:
    """Budgets ascend; a budget is settled if each doubling from it on is, so the last follows."""
    if len(budgets) == 1:
        return {budgets[0]: (Verdict("", "its n and k were trained at no other budget"), False)}
    falls = [
        fall_per_doubling(*pair, before - after)
        for pair, (before, after) in zip(pairwise(budgets), pairwise(losses), strict=True)
    ]
    found: dict[float, tuple[Verdict, bool]] = {}
    worst = falls[-1]
    for i in reversed(range(len(budgets))):
        step = falls[min(i, len(falls) - 1)]
        worst = max(worst, step, key=abs)
        is_last = i == len(budgets) - 1
        settled = Verdict("ladder", "") if abs(worst) <= SETTLED_FALL else None
        reason = Verdict("", _moving(worst, budgets[i], is_last))
        found[budgets[i]] = (settled or reason, settled is None and not is_last)
    return found


def _moving(fall: float, budget: float, is_last: bool) -> str:
    verb = "falls" if fall > 0 else "rises"
    where = "up to" if is_last else "from"
    return (
        f"its loss {verb} by {abs(fall):.1%} per doubling of tokens {where} {short_count(budget)}"
    )


def _curve_verdict(curve: pd.DataFrame, loss_name: str) -> Verdict:
    last = last_doubling(curve, loss_name)
    if last.problem:
        return Verdict("", last.problem)
    if last.at_most <= SETTLED_FALL and last.fall >= -SETTLED_FALL:
        return Verdict("curve", "")
    return Verdict(
        "",
        f"its own {last.column} fell by {last.fall:.1%} (at most {last.at_most:.1%}) in the last "
        "doubling of tokens",
    )


def _cells(table: RunTable) -> set[_Cell]:
    return {*zip(table.points["n"].tolist(), table.points["k"].tolist(), strict=True)}
