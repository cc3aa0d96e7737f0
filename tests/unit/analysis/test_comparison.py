"""Rival forms beside each other, and runs far off the law: reported, never dropped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricate import (
    PLANTED,
    demo_cells,
    fabricate_sweep,
    losses_of,
    planted_table,
    record,
    write_record,
)

from analysis.fitting.fit import fit_law
from analysis.judgement.rivals import aicc
from analysis.laws.joint import LatentsKPlusTokens, LatentsKTokensTilted, Law
from analysis.records.table import RunTable
from analysis.report.sections.forms import forms_compared
from analysis.report.write import main
from analysis.study.fitted import FitOptions
from analysis.study.outliers import far_off
from analysis.study.study import Study, study_runs

ADDITIVE = LatentsKPlusTokens(
    **{name: PLANTED.parameters[name] for name in LatentsKPlusTokens.parameter_names[:6]},
    **{"tau": 1.0, "b": 0.35, "c": 0.5},
)
CELLS = demo_cells()


def _table(law: Law, noise: float = 0.0005) -> RunTable:
    return planted_table(law, CELLS, noise, seed=3)


def _study(law: Law) -> Study:
    return study_runs(_table(law), FitOptions(n_bootstrap=0))


def test_the_rival_is_judged_on_the_same_runs_and_never_leads() -> None:
    study = _study(ADDITIVE)
    assert study.rivals is not None
    rows = study.rivals.rows
    assert [row.law for row in rows[:3]] == ["l_nkdu", "l_nkd", "l_nkd_additive"]
    assert [row.n_parameters for row in rows[:3]] == [10, 9, 9]
    held = {test.holdout and len(test.holdout.table) for row in rows for test in row.held_out[:1]}
    assert held == {5}
    assert min(rows, key=lambda row: row.holdout_rms("largest n") or 1.0).law == "l_nkd_additive"
    best = min(rows, key=lambda row: row.aicc or 0.0)
    assert best.law == "l_nkd_additive"
    assert best.delta == 0.0
    assert sum(row.weight or 0.0 for row in rows) == pytest.approx(1.0)
    assert study.headline.law is LatentsKTokensTilted
    table = "".join(forms_compared(study))
    assert "l_nkd_additive</td>" in table
    assert "AICc prefers l_nkd_additive (weight 1.00)" in table


def test_aicc_is_the_textbook_formula() -> None:
    fit = fit_law(LatentsKTokensTilted, _table(PLANTED))
    m, p = len(CELLS), 11  # ten coefficients and the variance
    squares = float(fit.residuals @ fit.residuals)
    by_hand = m * np.log(squares / m) + 2 * p + 2 * p * (p + 1) / (m - p - 1)
    assert aicc(fit) == pytest.approx(by_hand)


def test_outliers_are_listed_and_both_fits_reported(tmp_path: Path) -> None:
    sweep = fabricate_sweep(tmp_path / "sweep", CELLS, noise=0.002)
    odd = CELLS[20]
    truth = float(losses_of(PLANTED, [odd], noise=0.0)[0])
    run = write_record(sweep, record(odd, 1.15 * truth)).name
    assert main([str(sweep), "--bootstrap", "100"]) == 0
    fits = json.loads((sweep / "report" / "fits.json").read_text())
    assert run in {row["run"] for row in fits["outliers"]["runs"]}
    worst = max(fits["outliers"]["runs"], key=lambda row: row["mads"])
    assert worst["run"] == run
    assert worst["residual_log"] == pytest.approx(np.log(1.15), abs=0.08)
    both = {f["rows"]: f for f in fits["fits"] if f["law"] == "l_nkdu"}
    without = both[fits["outliers"]["rows_without"]]
    assert without["n_used"] == len(CELLS) - len(fits["outliers"]["runs"])
    assert both["all runs"]["n_used"] == len(CELLS)  # nothing was dropped from it
    assert without["rms_log_residual"] < both["all runs"]["rms_log_residual"] / 2
    assert without["reference"] == both["all runs"]["reference"]
    page = (sweep / "report" / "index.html").read_text()
    assert "with and without these runs" in page
    assert "median absolute residual" in page


def test_runs_on_the_law_have_no_outliers() -> None:
    assert not far_off(fit_law(LatentsKTokensTilted, _table(PLANTED, noise=0.0))).any()
    tight = fit_law(LatentsKTokensTilted, _table(PLANTED))
    assert not far_off(tight).any()  # normal errors
    odd = replace(tight, residuals=np.where(np.arange(len(CELLS)) == 7, 1.0, tight.residuals))
    assert np.flatnonzero(far_off(odd)).tolist() == [7]
