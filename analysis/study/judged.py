"""What the tests of a fit say of it, gathered for the report: none of them changes the fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.judgement.floors import Floors, floors
from analysis.judgement.identifiability import Identifiability, identifiability
from analysis.judgement.lack_of_fit import LackOfFit, lack_of_fit
from analysis.judgement.patterns import ResidualMap, SignRuns, residual_maps, sign_runs
from analysis.judgement.rivals import Rivals, compare_rivals, family
from analysis.laws.joint import LatentsKPlusTokens, LatentsKTokens
from analysis.study.fitted import FittedLaw


@dataclass(frozen=True)
class Judged:
    """Of one fit, on all runs."""

    of: FittedLaw
    design: Identifiability
    lack_of_fit: LackOfFit
    floors: Floors
    sign_runs: tuple[SignRuns, ...]
    maps: tuple[ResidualMap, ...]
    rivals: Rivals  # the law first; each also tested on held-out ends of n and tokens

    def json(self) -> dict[str, Any]:
        return {
            "of": {"law": self.of.law.name, "rows": self.of.rows},
            "design": self.design.json(),
            "lack_of_fit": self.lack_of_fit.json(),
            "floors": self.floors.json(),
            "sign_runs": [runs.json() for runs in self.sign_runs],
            "residual_maps": [each.json() for each in self.maps],
        }


def judge_fit(fitted: FittedLaw) -> Judged:
    fit = fitted.fit
    law = type(fit.law)
    others = (LatentsKTokens, LatentsKPlusTokens) if "tokens" in law.axes else ()
    # Each law once, in this order: the law itself, other forms, what is nested in it.
    laws = tuple(dict.fromkeys((law, *others, *family(law))))
    return Judged(
        of=fitted,
        design=identifiability(law, fit.table, fit),
        lack_of_fit=lack_of_fit(fit),
        floors=floors(fit),
        sign_runs=sign_runs(fit),
        maps=residual_maps(fit),
        rivals=compare_rivals(laws, fit.table),
    )
