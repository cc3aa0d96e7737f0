"""Scaling laws by name. docs/laws.md shows how to add one."""

from __future__ import annotations

from analysis.laws.joint import (
    LatentsAndK,
    LatentsKPlusTokens,
    LatentsKTokens,
    LatentsKTokensTilted,
)
from analysis.laws.law import Law

LAWS: dict[str, type[Law]] = {
    law.name: law for law in (LatentsAndK, LatentsKTokens, LatentsKTokensTilted, LatentsKPlusTokens)
}
