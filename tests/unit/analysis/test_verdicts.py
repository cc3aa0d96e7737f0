"""All judgements of one fit together: nothing against a right law, several against a wrong one."""

from __future__ import annotations

import json

from fabricate import PLANTED, Cell, planted_table
from gpt4 import gpt4_table

from analysis.fitting.fit import Fit, fit_law
from analysis.judgement.verdicts import judge_fit
from analysis.laws.joint import LatentsAndK, LatentsKTokens, LatentsKTokensTilted

CELLS = [
    Cell(n, k, n * d)
    for n in (256, 1024, 4096, 16384, 65536)
    for k in (4, 16, 64)
    for d in (250, 1000, 4000)
]
SEEDS = [*CELLS, *CELLS[::5], *CELLS[::5]]


def _fit(law) -> Fit:
    return fit_law(law, planted_table(PLANTED, SEEDS, 0.001, 4, seeds=range(len(SEEDS))))


def test_nothing_stands_against_the_planted_law() -> None:
    verdicts = judge_fit(_fit(LatentsKTokensTilted))
    assert verdicts.found == ()
    lines = list(verdicts.lines())
    assert lines[0] == "The design determines this law."
    assert lines[1].startswith("No lack of fit is seen")
    assert sum("held out" in line for line in lines) == 3


def test_a_wrong_law_is_found_by_more_than_one_of_them() -> None:
    verdicts = judge_fit(_fit(LatentsKTokens))
    assert verdicts.lack_of_fit.found
    assert verdicts.floors.found
    assert len(verdicts.found) >= 2
    stored = json.loads(json.dumps(verdicts.json(), allow_nan=False))
    assert stored["found"] == list(verdicts.found)
    assert [part["tokens"] for part in stored["residual_maps"]] == sorted({c.tokens for c in CELLS})


def test_the_papers_points() -> None:
    """Small residuals (0.96%) that run along n, and slices that do not share a floor."""
    found = judge_fit(fit_law(LatentsAndK, gpt4_table())).found
    assert len(found) == 2
    assert found[0].startswith("Along n the law misses in the same direction at one size after")
    assert "(31 of 40 pairs of neighbors have residuals of one sign, 18 expected" in found[0]
    assert found[1].startswith("Fitted one k at a time, the runs follow other laws")
