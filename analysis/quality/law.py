"""Is there a law of n and k for a metric, as there is one for the loss?

Tried for metrics that fall as they get better and are above 0, in this order, fixed before any
result:

    L(n,k) without a floor   ln L = alpha + beta_k ln k + beta_n ln n + gamma ln k ln n
    L(n,k)                   the same, plus a floor that depends on k

The first is claimed that stands all tests: an effect of n is seen at all, beyond what a line misses
and beyond the tasks or the text drawn; no lack of fit against
the scatter of seeds (F test at 1%); and the runs of the largest n, held out, lie within their 95%
prediction intervals (at most one in ten outside) and nearer to the law than to what the n before
had at the same k: a metric that hardly moves would pass the others with any law. Runs of mostly
dead latents are not fitted, as they are not for the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.errors import TableError
from analysis.judgement.holdout import Holdout
from analysis.judgement.lack_of_fit import LackOfFit, lack_of_fit
from analysis.laws.joint import LatentsAndK
from analysis.laws.law import Law
from analysis.laws.nested import RIVALS
from analysis.quality.trend import Trend, trend
from analysis.quality.values import Values, leaves_zero
from analysis.records.table import RunTable
from analysis.study.fitted import FittedLaw, fit_table

CANDIDATES: tuple[type[Law], ...] = (
    next(law for law in RIVALS[LatentsAndK.name] if law.name.endswith("_no_floor")),
    LatentsAndK,
)
_MOST_OUTSIDE = 0.1
"""Of the runs held out: one in twenty is outside by chance."""


@dataclass(frozen=True)
class Tried:
    """One law, on all runs and on those below the largest n."""

    title: str
    refusal: str
    """Why it could not be fitted or tested; "" where it was."""
    fitted: FittedLaw | None = None
    lack: LackOfFit | None = None
    held_out: Holdout | None = None
    carried: float = float("nan")
    """Error (rms, of ln) at the largest n of taking the mean of the n before, at the same k; NaN
    where no k has both."""

    @property
    def holds(self) -> bool:
        return self.fitted is not None and not self.objection

    @property
    def objection(self) -> str:
        """What speaks against it; "" where nothing does."""
        if self.fitted is None or self.lack is None or self.held_out is None:
            return self.refusal
        if self.lack.test is None:
            return f"lack of fit cannot be tested: {self.lack.refusal}"
        if self.lack.found:
            return (
                f"it misses by {self.lack.sd_law:.2g} beyond the {self.lack.sd_pure:.2g} between "
                f"seeds, in ln (p = {self.lack.p:.1g})"
            )
        held, n_held = self.held_out, len(self.held_out.table)
        if n_held - held.in_pi95 > _MOST_OUTSIDE * n_held:
            return (
                f"of {n_held} runs of the largest n, held out, {n_held - held.in_pi95} lie outside "
                f"of their 95% intervals (error {held.rms_log:.1%} rms)"
            )
        if not held.rms_log < self.carried:
            return (
                f"at the largest n, held out, it errs by {held.rms_log:.1%} rms, and the value of "
                f"the n before by {self.carried:.1%}"
            )
        return ""


def laws_tried(values: Values) -> list[Tried]:
    """Up to and with the first that holds; none where the metric takes no law."""
    if not values.quality.takes_law:
        return []
    if not values.relative:
        return [Tried("L(n,k)", "some values are not above 0")]
    along = trend(values, "n")
    if along is None or along.interval is None:
        return [Tried("L(n,k)", "too few cells to see an effect of n")]
    if not along.is_seen:
        return [Tried("L(n,k)", _unseen(values, along))]
    tried: list[Tried] = []
    for law in CANDIDATES:
        tried.append(_tried(law, _table(values)))
        if tried[-1].holds:
            break
    return tried


def _unseen(values: Values, along: Trend) -> str:
    if leaves_zero(along.interval):
        return f"no effect of n is seen beyond the {values.quality.drawn} drawn"
    return "no effect of n is seen beyond what a straight line misses"


def _tried(law: type[Law], table: RunTable) -> Tried:
    """Plain fits: the intervals of their parameters are from standard errors."""
    largest = table.points["n"] == table.points["n"].max() if len(table) else np.zeros(0, bool)
    try:
        fitted = fit_table(law, table, n_bootstrap=0)
        tested = fit_table(law, table, held_out=largest, n_bootstrap=0)
    except TableError as refusal:
        return Tried(law.title, str(refusal))
    lack, carried = lack_of_fit(fitted.fit), _carried(table)
    return Tried(fitted.title, "", fitted, lack, tested.holdout, carried)


def _carried(table: RunTable) -> float:
    n, k = table.points["n"], table.points["k"]
    largest = n.max()
    before = n[n < largest].max()
    errors = [
        table.log_loss[(n == largest) & (k == level)]
        - table.log_loss[(n == before) & (k == level)].mean()
        for level in set(k[n == largest]) & set(k[n == before])
    ]
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2))) if errors else float("nan")


def _table(values: Values) -> RunTable:
    runs = values.runs.loc[~values.runs["dead"]]
    points = {axis: runs[axis].to_numpy(np.float64) for axis in ("n", "k")}
    if values.tokens is not None:
        points["tokens"] = np.full(len(runs), values.tokens)
    return RunTable(
        *(points, runs["value"].to_numpy(np.float64), tuple(runs["run"]), values.quality.column),
        seeds=(None,) * len(runs),
    )
