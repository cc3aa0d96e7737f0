"""Which runs to hold out to see a law extrapolate, in n and in tokens, and how it did.

A law is for sizes and budgets that nobody has trained yet, so each test hides the far end of one
axis, or of both, and predicts it from the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.errors import TableError
from analysis.fitting.checks import check_usable
from analysis.fitting.fit import Fit, fit_law
from analysis.judgement.holdout import Holdout, judge
from analysis.judgement.significance import FTest, is_found
from analysis.laws.forms import Array
from analysis.laws.law import Law
from analysis.records.columns import SAME_BUDGET
from analysis.records.table import RunTable
from analysis.uncertainty.clusters import By, Clusters
from analysis.uncertainty.doubt import plain_doubt

_NO_SCATTER = (
    "the law goes through the other runs exactly, so they have no scatter to judge errors by; "
    "check that their losses are measured and not all the same."
)


@dataclass(frozen=True)
class HoldoutPlan:
    """Rows to hide, bool [M]; with a refusal the rest cannot be fitted."""

    name: str
    mask: NDArray[np.bool_]
    refusal: str = ""


@dataclass(frozen=True)
class HeldOutTest:
    """A plan carried out; `holdout` is None where the plan, or the fit of the rest, was refused."""

    law: str
    plan: str
    n_fitted: int
    holdout: Holdout | None
    p: float | None  # of residuals as large as these if the law held: Chow's predictive test
    refusal: str = ""

    @property
    def found(self) -> bool:
        """The law misses the held-out runs by more than the uncertainty of its parameters and
        the scatter of runs allow."""
        return is_found(self.p)

    @property
    def message(self) -> str:
        if self.holdout is None:
            return f"{self.law}, {self.plan} held out: not possible; {self.refusal}"
        held = self.holdout
        verdict = "larger than" if self.found else "no larger than"
        return (
            f"{self.law}, {self.plan} held out: {len(held.table)} runs predicted from "
            f"{self.n_fitted}, rms {held.rms_log:.2%}, worst {held.worst_log:.2%}, mean "
            f"{held.mean_log:+.2%}; {held.in_pi95} of {len(held.table)} in their 95% prediction "
            f"intervals; the errors are {verdict} the parameters' uncertainty and the scatter of "
            f"runs explain (p = {self.p:.2g})."
        )

    def json(self) -> dict[str, Any]:
        held = self.holdout
        numbers = (
            {}
            if held is None
            else {
                **{"n": len(held.table), "rms_log": held.rms_log, "worst_log": held.worst_log},
                **{"mean_log": held.mean_log, "in_pi95": held.in_pi95},
            }
        )
        return {
            **{"law": self.law, "held_out": self.plan, "n_fitted": self.n_fitted},
            **{"found": self.found, "message": self.message, "refusal": self.refusal},
            **{"p": self.p, **numbers},
        }


def holdout_plans(table: RunTable, law: type[Law] | None = None) -> tuple[HoldoutPlan, ...]:
    """The far ends of n and tokens, one at a time and together; of equal masks the first.

    "largest tokens of each n" is for ladders that grow with n, whose largest budget of all belongs
    to the largest n alone. Given a law, a plan whose rest cannot determine it says why.
    """
    n, tokens = table.points["n"], table.points.get("tokens")
    masks: dict[str, NDArray[np.bool_]] = {"largest n": n == n.max()}
    if tokens is not None:
        masks["largest tokens"] = _largest(tokens)
        masks["largest tokens of each n"] = _largest_of_each(tokens, n)
        masks["largest n and largest tokens"] = masks["largest n"] | masks["largest tokens"]
    plans: dict[bytes, HoldoutPlan] = {}
    for name, mask in masks.items():
        plans.setdefault(mask.tobytes(), HoldoutPlan(name, mask, _refusal(table, mask, name, law)))
    return tuple(plans.values())


def held_out_tests(
    law: type[Law],
    table: RunTable,
    plans: Sequence[HoldoutPlan] | None = None,
    *,
    fit: Callable[[type[Law], RunTable], Fit] = fit_law,
    clusters: By | tuple[By, ...] | None = None,
) -> tuple[HeldOutTest, ...]:
    """Carry out the plans (by default those of `holdout_plans`) for a law. Nothing raises.

    `clusters` says which runs may share an error: intervals and p then hold these, and a plan that
    leaves too few clusters is refused.
    """
    chosen = holdout_plans(table, law) if plans is None else plans
    return tuple(_carry_out(law, table, plan, fit, clusters) for plan in chosen)


def predictive_p(fit: Fit, held_out: RunTable, clusters: Clusters | None = None) -> float:
    """Probability of held-out residuals at least this large, if the law and its noise hold there.

    Chow's (1960) test of predictive failure: r' (I + J C J' / s^2)^-1 r / (H s^2) is F distributed
    with H and M - P degrees of freedom, C the covariance of the coefficients. With clusters, C is
    theirs, held-out runs share errors as the fitted ones do, and the second number is G - 1.
    """
    doubt = plain_doubt(fit) if clusters is None else clusters.doubt
    value, jacobian = fit.design(held_out.points).value_and_jacobian(fit.centered)
    residuals = held_out.log_loss - value
    alone = fit.variance * np.eye(len(residuals))
    spread = alone if clusters is None else clusters.errors_of(held_out)
    spread = spread + jacobian @ doubt.covariance @ jacobian.T
    size = float(residuals @ np.linalg.solve(spread, residuals)) / len(residuals)
    return FTest(size, (len(residuals), doubt.freedom)).p


def _largest(tokens: Array) -> NDArray[np.bool_]:
    return tokens > tokens.max() * (1.0 - SAME_BUDGET)


def _largest_of_each(tokens: Array, n: Array) -> NDArray[np.bool_]:
    mask = np.zeros(len(n), dtype=bool)
    for size in np.unique(n):
        mask[n == size] = _largest(tokens[n == size])
    return mask


def _refusal(table: RunTable, mask: NDArray[np.bool_], name: str, law: type[Law] | None) -> str:
    if mask.all():
        return f"every run has the {name}, so nothing is left to fit."
    if law is None:
        return ""
    try:
        check_usable(law, table.select(~mask))
    except TableError as refusal:
        return str(refusal)
    return ""


def _carry_out(
    law: type[Law],
    table: RunTable,
    plan: HoldoutPlan,
    fit: Callable[[type[Law], RunTable], Fit],
    by: By | tuple[By, ...] | None,
) -> HeldOutTest:
    n_fitted = int((~plan.mask).sum())
    if plan.refusal:
        return HeldOutTest(law.name, plan.name, n_fitted, None, None, plan.refusal)
    try:
        with np.errstate(all="ignore"):  # a start that runs to infinity loses to the others
            rest = fit(law, table.select(~plan.mask))
        clusters = None if by is None else Clusters.of(rest, by)
    except TableError as refusal:
        return HeldOutTest(law.name, plan.name, n_fitted, None, None, str(refusal))
    held_out = table.select(plan.mask)
    try:
        p = predictive_p(rest, held_out, clusters)
    except np.linalg.LinAlgError:
        return HeldOutTest(law.name, plan.name, n_fitted, None, None, _NO_SCATTER)
    judged = judge(rest, held_out, None if clusters is None else clusters.doubt)
    return HeldOutTest(law.name, plan.name, n_fitted, judged, p)
