"""Every law by name: planted, fitted by the command, found again; and what each refuses."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricate import PLANTED, demo_cells, points_of

from analysis.errors import TableError
from analysis.fit import fit_command
from analysis.fitting.fit import fit_law
from analysis.laws import LAWS
from analysis.laws.law import Law
from analysis.laws.powers import OfCompute, OfLatents, OfLatentsAndTokens, TokensToConvergence
from analysis.records.table import RunTable, table_from_frame
from analysis.study.fitted import fit_table, to_json

_SIZES = 2.0 ** np.arange(8, 16)


def _product(**axes: object) -> dict[str, np.ndarray]:
    columns = np.array(list(product(*axes.values())), dtype=np.float64).T
    return dict(zip(axes, columns, strict=True))


POINTS = {
    "l_nk": _product(n=_SIZES, k=(4, 8, 16, 32), tokens=(1e9,)),
    "l_nkd": points_of(demo_cells()),
    "l_n": _product(n=np.logspace(8, 16, 16, base=2), k=(16,), tokens=(1e9,)),
    "l_c": _product(flops=np.logspace(12, 18, 16), k=(16,), n=(1024,)),
    "l_nd": _product(n=_SIZES, tokens=(1e6, 4e6, 16e6, 64e6), k=(16,)),
    "d_star": _product(n=np.logspace(8, 16, 16, base=2), k=(16,)),
    "l_s": _product(n=_SIZES, subject=(1e7, 4e7, 16e7, 64e7), k=(16,), tokens=(1e9,)),
}
TRUTHS: dict[str, Law] = {
    "l_n": OfLatents(E=0.15, A=9.0, b=0.5),
    "l_c": OfCompute(E=0.1, A=300.0, b=0.25),
    "l_nd": OfLatentsAndTokens(E=0.1, A=4.0, a=0.5, B=120.0, b=0.5),
    "d_star": TokensToConvergence(D0=3e5, s=0.65, n0=1024.0),
    "l_s": LAWS["l_s"](
        **{"alpha": 0.5, "beta_s": -0.02, "beta_n": -0.45, "gamma": 0.01},
        **{"zeta": -4.0, "eta": 0.1},
    ),
}


def _truth(law: type[Law]) -> Law:
    if law.name in TRUTHS:
        return TRUTHS[law.name]
    additive = {"tau": 1.0, "b": 0.35, "c": 0.5} if law.name == "l_nkd_additive" else {}
    flat = {"alpha": 0.8, "beta_k": -0.3, "beta_n": -0.25} if "no_gamma" in law.name else {}
    values = {**vars(PLANTED), **additive, **flat}
    names = (*law.parameter_names, *(f"{axis}0" for axis in law.reference_names))
    return law(**{name: values[name] for name in names})


def _points(law: type[Law]) -> dict[str, np.ndarray]:
    return POINTS.get(law.name, POINTS["l_nk" if law.name.startswith("l_nk_") else "l_nkd"])


def _frame(law: type[Law], noise: float) -> pd.DataFrame:
    points = _points(law)
    errors = np.random.default_rng(7).standard_normal(len(points["n"]))
    value = _truth(law).predict(points) * np.exp(noise * errors)
    frame = pd.DataFrame(points).rename(columns={"subject": "subject_params", "flops": "flops"})
    name = "tokens" if law.response == "tokens" else "normalized_mse"
    return frame.assign(run_id=[f"run{i}" for i in range(len(frame))], **{name: value})


@pytest.mark.parametrize("name", LAWS)
def test_exact_values_give_the_planted_law_by_every_start(name: str) -> None:
    law = LAWS[name]
    table = table_from_frame(_frame(law, 0.0), source="it", response=law.response)
    fit = fit_law(law, table, {"n": 1024.0, "k": 16.0})
    for parameter, value in _truth(law).parameters.items():
        assert fit.law.parameters[parameter] == pytest.approx(value, rel=2e-5)
    assert all(start.is_best for start in fit.starts)
    assert fit.full_rank


@pytest.mark.parametrize("name", LAWS)
def test_the_command_fits_it(name: str, tmp_path: Path) -> None:
    law, out, csv = LAWS[name], tmp_path / "out.json", tmp_path / "runs.csv"
    _frame(law, 0.002).to_csv(csv, index=False)
    arguments = ("--law", name, "--table", str(csv), "--json", str(out), "--bootstrap", "100")
    assert fit_command(arguments) == 0
    found = json.loads(out.read_text())
    assert list(found["params"]) == list(law.parameter_names) == list(found["units"])
    again = law(**found["params"], **found["reference"])
    points = _points(law)
    np.testing.assert_allclose(again.predict(points), _truth(law).predict(points), rtol=0.01)
    for parameter, (low, high) in found["ci95"].items():
        assert low < found["params"][parameter] < high
    assert found["degrees_of_freedom"] == found["n_used"] - len(law.parameter_names)
    assert "starts_disagree" not in found["warnings"]


def test_one_k_is_asked_for_and_can_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "runs.csv"
    frame = _frame(LAWS["l_nk"], 0.002)
    frame.to_csv(csv, index=False)
    arguments = ("--law", "l_n", "--table", str(csv), "--bootstrap", "0")
    assert fit_command(arguments) == 2
    assert "takes runs of one k, but k has 4 levels (4, 8, 16, 32)" in capsys.readouterr().err
    assert fit_command((*arguments, "--k", "16")) == 0
    assert f"over {(frame['k'] == 16).sum()} runs" in capsys.readouterr().out
    assert fit_command((*arguments, "--k", "5")) == 2
    assert "the table has k = 4, 8, 16, 32" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["l_n", "l_c", "l_nd", "d_star", "l_s"])
def test_laws_of_one_k_refuse_several(name: str) -> None:
    law = LAWS[name]
    frame = _frame(law, 0.002)
    frame["k"] = np.where(np.arange(len(frame)) < 3, 8, 16)
    table = table_from_frame(frame, source="it", response=law.response)
    with pytest.raises(TableError, match=f"law {name} takes runs of one k"):
        fit_law(law, table)


def test_a_subject_tied_to_n_is_refused() -> None:
    law = LAWS["l_s"]
    frame = _frame(law, 0.002)
    frame = frame.assign(subject_params=1e5 * frame["n"], normalized_mse=0.9 / np.arange(2, 34))
    with pytest.raises(TableError, match="subject is a function of n"):
        fit_law(law, table_from_frame(frame, source="it"))


def test_losses_are_no_tokens_to_convergence_and_a_law_names_its_column() -> None:
    losses = table_from_frame(_frame(LAWS["l_n"], 0.002), source="it")
    with pytest.raises(TableError, match="fitted to tokens to convergence, but"):
        fit_law(LAWS["d_star"], losses)
    for name, column in (("l_s", "subject_params"), ("l_c", "flops")):
        with pytest.raises(TableError, match=f"needs the column {column}, which"):
            fit_law(LAWS[name], losses)


def _iso_flops() -> tuple[RunTable, np.ndarray]:
    """Nine budgets of FLOPs, five n each; the best n grows with the budget."""
    flops, n = (column.ravel() for column in np.meshgrid(np.logspace(12, 16, 9), _SIZES[:5]))
    best = np.exp(np.log(256) + np.log(flops / 1e12) * np.log(16) / np.log(1e4))
    excess = 0.02 * np.log(n / best) ** 2
    loss = TRUTHS["l_c"].predict({"flops": flops}) * np.exp(excess)
    frame = pd.DataFrame({"n": n, "k": 16, "flops": flops, "tokens": flops / n, "loss": loss})
    return table_from_frame(frame, source="it"), excess


def test_a_law_of_compute_is_of_the_runs_that_no_cheaper_run_beats() -> None:
    table, excess = _iso_flops()
    fitted = fit_table(LAWS["l_c"], table, n_bootstrap=0)
    assert len(fitted.fit.table) == 9  # one n for each budget
    assert len(fitted.fit.table.dropped) == len(table) - 9
    assert "no higher loss" in fitted.fit.table.dropped[0].reason
    best = {run for run, over in zip(table.runs, excess, strict=True) if over < 0.01}
    assert set(fitted.fit.table.runs) <= best
    assert fitted.law.parameters["b"] == pytest.approx(0.25, abs=0.02)
    plain = fit_law(LAWS["l_c"], table)
    assert plain.rms_log_residual > 10 * fitted.fit.rms_log_residual


def test_the_frontier_may_be_held_out_in_part() -> None:
    table, _ = _iso_flops()
    held_out = table.points["flops"] > 1e15
    found = to_json(fit_table(LAWS["l_c"], table, held_out=held_out, n_bootstrap=0))
    assert (found["n_used"], found["holdout"]["n"]) == (7, 2)
    beaten = (table.points["n"] == 256) & held_out
    with pytest.raises(TableError, match="no run held out is one"):
        fit_table(LAWS["l_c"], table, held_out=beaten, n_bootstrap=0)
