"""Scaling laws by name. docs/laws.md lists them and shows how to add one."""

from __future__ import annotations

from analysis.laws.joint import (
    LatentsAndK,
    LatentsAndSubject,
    LatentsKPlusTokens,
    LatentsKTokens,
    LatentsKTokensTilted,
)
from analysis.laws.law import Law
from analysis.laws.nested import RIVALS
from analysis.laws.powers import OfCompute, OfLatents, OfLatentsAndTokens, TokensToConvergence

_OWN: tuple[type[Law], ...] = (
    *(LatentsAndK, LatentsKTokens, LatentsKTokensTilted, LatentsKPlusTokens),
    *(OfLatents, OfCompute, OfLatentsAndTokens, TokensToConvergence, LatentsAndSubject),
)
LAWS: dict[str, type[Law]] = {
    law.name: law for law in (*_OWN, *(rival for rivals in RIVALS.values() for rival in rivals))
}
