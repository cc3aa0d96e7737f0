"""Does a law miss by more than runs scatter? Replicates (other seeds of a cell) against residuals.

The classical test of lack of fit (Draper and Smith 1998, section 2.1): runs of one point differ by
pure error alone, so what the residuals hold beyond it is the law's. It is exact for linear models
with equal errors, and here to first order in the curvature of the law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.fitting.fit import Fit
from analysis.fitting.replicates import pure_error
from analysis.judgement.significance import FTest, f_json, is_found


@dataclass(frozen=True)
class LackOfFit:
    """F test of the law against pure error; None in every field where it cannot be made."""

    refusal: str  # why there is no test, "" where there is one
    sd_pure: float | None = None  # of ln loss over seeds
    sd_law: float | None = None  # of what the law misses beyond that, in ln loss; 0: nothing
    test: FTest | None = None
    equal_spreads: bool | None = None

    @property
    def p(self) -> float | None:
        return None if self.test is None else self.test.p

    @property
    def found(self) -> bool:
        return is_found(self.p)

    @property
    def message(self) -> str:
        if self.test is None:
            return f"Lack of fit cannot be tested: {self.refusal}."
        if self.found:
            return (
                f"The law misses by more than runs scatter: {self.sd_law:.2%} of the loss beyond "
                f"the {self.sd_pure:.2%} between seeds ({self.test.text}). Its form is not exact, "
                "and intervals do not hold that."
            )
        return (
            f"No lack of fit is seen against the {self.sd_pure:.2%} between seeds "
            f"({self.test.text}): what is missed is no more than scatter allows."
        )

    def json(self) -> dict[str, Any]:
        return {
            "found": self.found,
            "message": self.message,
            **{"sd_pure_log": self.sd_pure, "sd_law_log": self.sd_law},
            **f_json(self.test),
            "equal_spreads": self.equal_spreads,
        }


def lack_of_fit(fit: Fit) -> LackOfFit:
    """Test a least-squares fit against replicates in its table."""
    if fit.method != "least_squares":
        return LackOfFit("it is of least squares, and this fit is robust; test the plain one")
    pure = pure_error(fit.table)
    if pure is None:
        return LackOfFit("no point was trained with a second seed; give some cells replicates")
    freedom_law = fit.degrees_of_freedom - float(pure.freedoms.sum())
    if freedom_law <= 0:
        return LackOfFit("the law has as many parameters as there are different points")
    if pure.variance == 0.0:
        return LackOfFit("the replicates have equal losses to the last digit: are they copies?")
    squares = float(fit.residuals @ fit.residuals) - float(pure.sums_of_squares.sum())
    # A law fitted at its optimum cannot leave less than pure error, but for rounding.
    mean_square = max(squares, 0.0) / freedom_law
    return LackOfFit(
        refusal="",
        sd_pure=float(np.sqrt(pure.variance)),
        sd_law=float(np.sqrt(max(mean_square - pure.variance, 0.0))),
        test=FTest(mean_square / pure.variance, (freedom_law, pure.degrees_of_freedom)),
        equal_spreads=pure.equal,
    )
