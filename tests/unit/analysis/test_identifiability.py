"""What a design of runs can determine: each shortfall is named, and a good design has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fabricate import PLANTED, Cell, demo_cells, planted_table
from gpt4 import gpt4_table

from analysis.fitting.fit import fit_law
from analysis.judgement.identifiability import condition_number, identifiability
from analysis.laws.joint import LatentsAndK, LatentsKTokens, LatentsKTokensTilted

SIZES, SPARSITIES = (256, 1024, 4096, 16384, 65536), (4, 16, 64)
BUDGETS = (1_000_000, 4_000_000, 16_000_000)
GOOD = [Cell(n, k, d) for n in SIZES for k in SPARSITIES for d in BUDGETS]


def _findings(cells: list[Cell], law=LatentsKTokensTilted) -> dict[str, str]:
    return identifiability(law, planted_table(PLANTED, cells, 0.0)).findings


def test_a_good_design_has_no_findings() -> None:
    table = planted_table(PLANTED, GOOD, 0.001)
    judged = identifiability(LatentsKTokensTilted, table)
    assert judged.findings == {}
    assert judged.message == "The design determines this law."
    assert [(s.axis, s.n_levels, s.factor) for s in judged.spans] == [
        ("n", 5, 256.0),
        ("k", 3, 16.0),
        ("tokens", 3, 16.0),
    ]
    assert judged.ladders == (15, 15, 5, 3, 3, 16.0)


@pytest.mark.parametrize(
    ("keep", "codes"),
    [
        (lambda c: c.n < 65536, {"narrow_n"}),
        (lambda c: c.n in (256, 65536), {"few_levels_n", "ladders_at_few_n"}),
        (lambda c: c.k < 64, {"few_levels_k", "narrow_k"}),
        (lambda c: c.tokens < 16_000_000, {"few_levels_tokens", "short_ladders"}),
        (lambda c: c.tokens == 4_000_000, {"few_levels_tokens", "no_ladders"}),
        (lambda c: c.tokens == 4_000_000 or c.k == 16, {"ladders_at_one_k"}),
        (lambda c: c.tokens == 4_000_000 or c.n <= 1024, {"ladders_at_few_n"}),
    ],
)
def test_each_shortfall_is_named(keep, codes: set[str]) -> None:
    assert set(_findings([cell for cell in GOOD if keep(cell)])) == codes


def test_u_alone_needs_ladders_at_two_k() -> None:
    cells = [cell for cell in GOOD if cell.tokens == 4_000_000 or cell.k == 16]
    assert _findings(cells, LatentsKTokens) == {}


def test_budgets_tied_to_n() -> None:
    """Budgets D*(n) alone, and the same with one odd run that keeps the fit from refusing."""
    tied = [Cell(n, k, n * 1000) for n in SIZES for k in SPARSITIES]
    found = _findings(tied)
    assert set(found) == {"tokens_tied_to_n", "no_ladders"}
    assert "1/64" in found["tokens_tied_to_n"]
    nearly = _findings([*tied, Cell(4096, 16, 1_024_000)])
    assert "told apart by few runs" in nearly["tokens_tied_to_n"]
    shares = [Cell(n, k, n * 64000 // d) for n in SIZES for k in SPARSITIES for d in (1, 4, 16, 64)]
    assert "tokens_tied_to_n" not in _findings(shares)


def test_k_tied_to_n() -> None:
    tied = [Cell(n, n // 64, d) for n in SIZES for d in BUDGETS]
    assert "n gives away 100% of the variance of ln k" in _findings(tied)["k_tied_to_n"]
    assert "k_tied_to_n" not in _findings(demo_cells())  # k <= n/16 is no tie


def test_narrow_ladders_are_named_with_their_factor() -> None:
    cells = [Cell(c.n, c.k, {1: 1, 4: 2, 16: 4}[c.tokens // 10**6] * 10**6) for c in GOOD]
    assert "span a factor of 4 at most" in _findings(cells)["narrow_ladders"]


def test_conditioning_of_a_fit() -> None:
    table = gpt4_table()
    fit = fit_law(LatentsAndK, table)
    judged = identifiability(LatentsAndK, table, fit)
    assert judged.condition == pytest.approx(35.84, rel=1e-3)
    assert judged.findings == {}
    assert judged.unresolved == ("beta_n",)  # -0.027 with a standard error of 0.027
    assert judged.message == (
        "Zero lies within 1.96 standard errors of beta_n: these runs do not tell its sign."
    )
    assert judged.ladders is None
    # Two columns that nearly agree, and two that agree.
    close, same = fit.jacobian.copy(), fit.jacobian.copy()
    close[:, 1] = close[:, 0] * (1 + 1e-4 * np.arange(45) / 45)
    same[:, 1] = same[:, 0]
    near = replace(fit, jacobian=close)
    assert 1e3 < condition_number(near) < 1e6
    assert "ill_conditioned" in identifiability(LatentsAndK, table, near).findings
    lost = identifiability(LatentsAndK, table, replace(fit, jacobian=same))
    assert lost.condition == float("inf")
    assert lost.json()["condition"] is None
    assert lost.unresolved == LatentsAndK.parameter_names
