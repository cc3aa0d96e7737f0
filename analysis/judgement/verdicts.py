"""All that is judged of one fit, together: what a report shows and a JSON keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from analysis.fitting.fit import Fit
from analysis.judgement.floors import Floors, floors
from analysis.judgement.held_out_tests import HeldOutTest, held_out_tests
from analysis.judgement.identifiability import Identifiability, identifiability
from analysis.judgement.lack_of_fit import LackOfFit, lack_of_fit
from analysis.judgement.patterns import ResidualMap, SignRuns, residual_maps, sign_runs


@dataclass(frozen=True)
class Verdicts:
    """Of one fit on its runs; docs/judgement.md says what each asks."""

    identifiability: Identifiability
    lack_of_fit: LackOfFit
    sign_runs: tuple[SignRuns, ...]
    floors: Floors
    held_out: tuple[HeldOutTest, ...]
    residual_maps: tuple[ResidualMap, ...]

    @property
    def found(self) -> tuple[str, ...]:
        """Sentences on what stands against the law or its design; empty where nothing does."""
        tests = (self.lack_of_fit, *self.sign_runs, self.floors, *self.held_out)
        return (
            *self.identifiability.findings.values(),
            *(test.message for test in tests if test.found),
        )

    def lines(self) -> Iterator[str]:
        """Every verdict as a sentence, also where nothing was found or nothing could be tested."""
        yield from self.identifiability.sentences
        yield self.lack_of_fit.message
        yield from (runs.message for runs in self.sign_runs)
        yield self.floors.message
        yield from (test.message for test in self.held_out)

    def json(self) -> dict[str, Any]:
        return {
            "found": list(self.found),
            "identifiability": self.identifiability.json(),
            "lack_of_fit": self.lack_of_fit.json(),
            "sign_runs": [runs.json() for runs in self.sign_runs],
            "floors": self.floors.json(),
            "held_out": [test.json() for test in self.held_out],
            "residual_maps": [part.json() for part in self.residual_maps],
        }


def judge_fit(fit: Fit, held_out: tuple[HeldOutTest, ...] | None = None) -> Verdicts:
    """Judge a fit against its own runs, and its law against the ends of them. Nothing raises.

    `held_out` are such tests of its law where they have been made already.
    """
    law = type(fit.law)
    return Verdicts(
        identifiability=identifiability(law, fit.table, fit),
        lack_of_fit=lack_of_fit(fit),
        sign_runs=sign_runs(fit),
        floors=floors(fit),
        held_out=held_out_tests(law, fit.table) if held_out is None else held_out,
        residual_maps=residual_maps(fit),
    )
