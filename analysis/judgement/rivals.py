"""A law beside its rivals on the same runs: Akaike weights, and the error of each on hidden runs.

AICc rewards what a parameter explains and charges for it; held-out errors ask what the law is for.
Where the two disagree the runs do not settle the form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.errors import TableError
from analysis.fitting.fit import Fit, fit_law
from analysis.judgement.held_out_tests import (
    HeldOutTest,
    HoldoutPlan,
    held_out_tests,
    holdout_plans,
)
from analysis.laws.law import Law
from analysis.laws.nested import RIVALS
from analysis.records.table import RunTable
from analysis.uncertainty.clusters import By

_CLEAR = 10.0  # of AICc: Burnham and Anderson (2002, section 2.6) find no support beyond


@dataclass(frozen=True)
class Rival:
    """One law; errors are of ln loss. With a refusal it was not fitted and has no numbers."""

    law: str
    title: str
    n_parameters: int
    refusal: str = ""
    rms_log: float | None = None
    aicc: float | None = None
    delta: float | None = None  # AICc above the lowest
    weight: float | None = None  # Akaike weight among the laws fitted
    held_out: tuple[HeldOutTest, ...] = ()

    def holdout_rms(self, plan: str) -> float | None:
        """Rms error of ln loss on a plan's hidden runs; None where it was not carried out."""
        tests = {t.plan: t.holdout for t in self.held_out}
        held = tests.get(plan)
        return held.rms_log if held is not None else None

    def json(self) -> dict[str, Any]:
        return {
            **{"law": self.law, "title": self.title, "n_parameters": self.n_parameters},
            **{"refusal": self.refusal, "rms_log_residual": self.rms_log, "aicc": self.aicc},
            **{"delta": self.delta, "weight": self.weight},
            "held_out": [test.json() for test in self.held_out],
        }


@dataclass(frozen=True)
class Rivals:
    """The family on one table, in the order given: the law first, its rivals after."""

    rows: tuple[Rival, ...]

    @property
    def message(self) -> str:
        ranked = sorted((r for r in self.rows if r.delta is not None), key=lambda r: r.delta or 0.0)
        if len(ranked) < 2:
            return "Fewer than two of these laws can be fitted, so none can be compared."
        best, second = ranked[0], ranked[1]
        clear = [r.law for r in ranked[1:] if (r.delta or 0.0) > _CLEAR]
        ruled = f"; it leaves no support for {', '.join(clear)}" if clear else ""
        text = (
            f"AICc prefers {best.law} (weight {best.weight:.2f}), then {second.law} "
            f"({second.delta:.1f} higher){ruled}."
        )
        return " ".join([text, *self._closest(best.law)])

    def _closest(self, preferred: str) -> list[str]:
        """Which law predicted each plan's hidden runs best; one sentence for equal answers."""
        errors = self._errors()
        best = {plan: min(of, key=lambda law: of[law]) for plan, of in errors.items()}
        agreeing = [plan for plan, law in best.items() if law == preferred]
        lines = [_closest_sentence(preferred, agreeing, errors)] if agreeing else []
        for plan in (plan for plan in best if plan not in agreeing):
            own = errors[plan].get(preferred)
            other = "not possible" if own is None else f"{own:.2%}"
            lines.append(
                f"With the {plan} held out, {best[plan]} comes closest: "
                f"{errors[plan][best[plan]]:.2%} rms ({preferred}: {other})."
            )
        return lines

    def _errors(self) -> dict[str, dict[str, float]]:
        """Plan -> law -> rms error, of the plans that at least two laws carried out."""
        plans = dict.fromkeys(test.plan for row in self.rows for test in row.held_out)
        errors = {
            plan: {r.law: e for r in self.rows if (e := r.holdout_rms(plan)) is not None}
            for plan in plans
        }
        return {plan: of for plan, of in errors.items() if len(of) > 1}

    def json(self) -> dict[str, Any]:
        return {"message": self.message, "laws": [row.json() for row in self.rows]}


def _closest_sentence(
    law: str, plans: Sequence[str], errors: Mapping[str, Mapping[str, float]]
) -> str:
    rms = ", ".join(f"{errors[plan][law]:.2%} ({plan})" for plan in plans)
    everywhere = len(plans) == len(errors) > 1
    where = (
        "in every held-out test" if everywhere else f"with the {' or the '.join(plans)} held out"
    )
    return f"It also comes closest {where}, rms {rms}."


def family(law: type[Law]) -> tuple[type[Law], ...]:
    """A law and those nested in it: no floor, a floor without k, no gamma."""
    return (law, *RIVALS.get(law.name, ()))


def compare_rivals(
    laws: Sequence[type[Law]],
    table: RunTable,
    plans: Sequence[HoldoutPlan] | None = None,
    *,
    clusters: By | tuple[By, ...] | None = None,
) -> Rivals:
    """Fit each law to the table and to what the plans leave of it, by least squares.

    Every law is judged on the same hidden rows: those of `plans`, by default of `holdout_plans`.
    Laws that cannot be fitted stay in the list, with the reason. `clusters`: see `held_out_tests`.
    """
    chosen = holdout_plans(table) if plans is None else plans
    fits = [_fit(law, table) for law in laws]
    criteria = [aicc(f) if isinstance(f, Fit) else None for f in fits]
    deltas, weights = akaike(criteria)
    rows = zip(laws, fits, criteria, deltas, weights, strict=True)
    return Rivals(tuple(_row(*row, table=table, plans=chosen, by=clusters) for row in rows))


def aicc(fit: Fit) -> float | None:
    """Akaike's criterion with the correction for few runs (Hurvich and Tsai 1989).

    The variance counts as a parameter. None where there are too few runs for the correction, where
    the runs lie on the law exactly, and for a robust fit, which minimizes something else.
    """
    n_runs, n_parameters = fit.jacobian.shape[0], fit.jacobian.shape[1] + 1
    mean_square = float(np.mean(fit.residuals**2))
    if n_runs <= n_parameters + 1 or mean_square == 0.0 or fit.method != "least_squares":
        return None
    correction = 2 * n_parameters * (n_parameters + 1) / (n_runs - n_parameters - 1)
    return n_runs * float(np.log(mean_square)) + 2 * n_parameters + correction


def akaike(
    criteria: Sequence[float | None],
) -> tuple[list[float | None], list[float | None]]:
    """Differences from the lowest AICc, and weights exp(-delta/2) that sum to one."""
    lowest = min((c for c in criteria if c is not None), default=0.0)
    deltas = [None if c is None else c - lowest for c in criteria]
    shares = [0.0 if d is None else float(np.exp(-d / 2)) for d in deltas]
    total = sum(shares) or 1.0
    pairs = zip(deltas, shares, strict=True)
    return deltas, [None if d is None else share / total for d, share in pairs]


def _fit(law: type[Law], table: RunTable) -> Fit | str:
    try:
        with np.errstate(all="ignore"):  # a start that runs to infinity loses to the others
            return fit_law(law, table)
    except TableError as refusal:
        return str(refusal)


def _row(
    law: type[Law],
    fit: Fit | str,
    criterion: float | None,
    delta: float | None,
    weight: float | None,
    *,
    table: RunTable,
    plans: Sequence[HoldoutPlan],
    by: By | tuple[By, ...] | None,
) -> Rival:
    size = len(law.parameter_names)
    if isinstance(fit, str):
        return Rival(law.name, law.title, size, refusal=fit)
    return Rival(
        law=law.name,
        title=law.title,
        n_parameters=size,
        rms_log=fit.rms_log_residual,
        aicc=criterion,
        delta=delta,
        weight=weight,
        held_out=held_out_tests(law, table, plans, clusters=by),
    )
