"""Every sweep file gets the law that its header promises under "Feeds", on its own cells."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricate import PLANTED, Cell, planted_table, record, write_record
from rich.console import Console

from analysis.fit import fit_command
from analysis.fitting.checks import check_usable
from analysis.judgement.identifiability import identifiability
from analysis.laws import LAWS
from analysis.laws.law import Law
from analysis.laws.powers import OfLatents, OfLatentsAndTokens, TokensToConvergence
from analysis.report.write import main
from scaling.activations.build import Description
from scaling.plan import RunPlan
from scaling.sweep import launch as launching
from tests.compose import ROOT
from tests.sweep_points import sweep_points

D_MODEL = 576
SWEEPS = sorted(path.stem for path in ROOT.glob("sweeps/*.yaml"))
REPORTS = ["isoflop", "nk_grid", "to_convergence", "token_grid"]
PAGES = {"demo": "runs/demo/report/index.html", "reference": "docs/study.md"}  # no law by name
ELSEWHERE = {
    **{"lr": "analysis.calibrate", "batch": "analysis.calibrate"},
    **{"quality": "analysis.quality", "smoke": "the tests"},
}
ONE_K = OfLatentsAndTokens(E=0.1, A=4.0, a=0.45, B=300.0, b=0.5)
SETTLED = OfLatents(E=0.1, A=4.0, b=0.45)
TOKENS = TokensToConvergence(D0=2.6e6, s=0.6, n0=1024.0)


def plans_of(name: str, folder: Path) -> list[RunPlan]:
    """The plans of a sweep file as a dry run settles them; nothing is harvested."""
    seen: list[RunPlan] = []

    def describe(config: object, data_dir: Path) -> Description:
        del data_dir
        tokens = getattr(config, "max_tokens", None)
        return Description(D_MODEL, tokens, 1_000, ready=False, spec=None)

    def keep(found: list[RunPlan]) -> list[RunPlan]:
        seen.extend(found)
        return [plan.with_estimate(1.0) for plan in found]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "describe", describe)
        patch.setattr(launching, "with_estimates", keep)
        patch.chdir(folder)
        points = [replace(point, dry_run=True) for point in sweep_points(name)]
        assert launching.launch(points, Console(file=StringIO(), width=200)) == 0
    return seen


def feeds(name: str) -> str:
    text = (ROOT / "sweeps" / f"{name}.yaml").read_text()
    found = re.search(r"# Feeds:(.*?)\n(?:# [A-Z]\w+:|[^#])", text, re.DOTALL)
    assert found is not None
    return found[1]


def laws_named(name: str) -> set[str]:
    return {word for word in re.findall(r"\w+", feeds(name)) if word in LAWS}


def _record(plan: RunPlan, law: Law, error: float) -> dict[str, Any]:
    n, k, tokens = plan.autoencoder.n_latents, plan.autoencoder.k, plan.tokens
    result: dict[str, Any] = {"decay_fraction": plan.train.decay_fraction}
    if plan.train.stop_fall is not None:  # all but the largest n end by their rule
        taken = int(TOKENS.predict({"n": np.array([float(n)])})[0])
        result |= {"converged": taken < tokens, "last_doubling_fall": 0.009}
        tokens = min(taken, tokens)
    points = {axis: np.array([float(v)]) for axis, v in (("n", n), ("k", k), ("tokens", tokens))}
    loss = float(law.predict(points)[0] * np.exp(error))
    flops = 12.0 * n * D_MODEL * tokens
    result |= {"tokens": tokens, "flops_dense": flops, "flops_sparse": flops / 5}
    row = record(Cell(n, k, plan.tokens_requested), loss, run_id=plan.run_id)
    row["result"] |= {**result, "normalized_mse_ema": loss}
    return row


def _planted(name: str) -> Law:
    return {"to_convergence": SETTLED, "isoflop": ONE_K}.get(name, PLANTED)


@pytest.fixture(scope="module")
def fits_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """fits.json of the report of a planted sweep, made once."""
    root = tmp_path_factory.mktemp("runs")

    @cache
    def fits(name: str) -> dict[str, Any]:
        plans = plans_of(name, root)
        errors = np.random.default_rng(0).normal(scale=0.001, size=len(plans))
        for plan, error in zip(plans, errors.tolist(), strict=True):
            write_record(root / name, _record(plan, _planted(name), error))
        flags = (
            ["--loss", "normalized_mse_ema"] if "--loss normalized_mse_ema" in feeds(name) else []
        )
        assert main([str(root / name), "--bootstrap", "0", *flags]) == 0
        return json.loads((root / name / "report" / "fits.json").read_text())

    return fits


def _final(fits: dict[str, Any], law: str) -> dict[str, Any]:
    """The fit on all runs that the law takes."""
    return next(f for f in fits["fits"] if f["law"] == law and f["rows"].startswith("all"))


def test_every_sweep_is_looked_at() -> None:
    assert sorted([*REPORTS, *PAGES, *ELSEWHERE, "subject_size"]) == SWEEPS


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_has_the_laws_that_the_header_names(
    name: str, fits_of: Callable[[str], dict[str, Any]]
) -> None:
    fits = fits_of(name)
    promised = laws_named(name)
    if name == "nk_grid":
        promised -= {"l_nkd"}  # with token_grid beside it, as the header says
    assert promised
    assert promised <= {fit["law"] for fit in fits["fits"] if fit["rows"].startswith("all")}
    if re.search(r"frontier|, D\*", feeds(name)):
        assert fits["frontier"]["points"]
    headline = _final(fits, fits["headline"]["law"])
    assert headline["rms_log_residual"] < 0.003


@pytest.mark.parametrize("name", PAGES)
def test_sweeps_that_feed_a_page_can_be_fitted(name: str, tmp_path: Path) -> None:
    """By the law that leads, on all runs and without the largest n."""
    assert PAGES[name] in feeds(name)
    plans = plans_of(name, tmp_path)
    cells = [Cell(p.autoencoder.n_latents, p.autoencoder.k, p.tokens_requested) for p in plans]
    table = planted_table(PLANTED, cells, noise=0.0)
    n = table.points["n"]
    for part in (table, table.select(n < n.max())):
        check_usable(LAWS["l_nkdu"], part)
    assert identifiability(LAWS["l_nkdu"], table).findings.keys() <= {"narrow_n", "narrow_ladders"}


def test_nk_grid_is_a_law_of_its_budgets(fits_of: Callable[[str], dict[str, Any]]) -> None:
    fits = fits_of("nk_grid")
    assert fits["headline"] == {"law": "l_nk", "title": "L(n,k | D*(n))"}
    assert "not_converged" in _final(fits, "l_nk")["warnings"]
    refused = {f["law"]: f["reason"] for f in fits["not_fitted"]}
    assert "tokens is a function of n alone" in refused["l_nkd"]
    assert sum(f["law"] == "l_nk" for f in fits["not_fitted"]) == 0


def test_isoflop_leads_with_l_nd_and_takes_the_frontier_from_it(
    fits_of: Callable[[str], dict[str, Any]],
) -> None:
    fits = fits_of("isoflop")
    assert fits["headline"]["law"] == "l_nd"
    assert _final(fits, "l_nd")["params"]["a"] == pytest.approx(0.45, abs=0.03)
    slopes = [e for e in fits["frontier"]["exponents"] if e["rule"] == "compute-optimal"]
    assert slopes[0]["of_n"] == pytest.approx(0.5 / 0.95, abs=0.05)
    assert "runs of one k" in fits["comparison"]["rule"]


def test_to_convergence_leads_with_l_n_of_converged_runs(
    fits_of: Callable[[str], dict[str, Any]],
) -> None:
    fits = fits_of("to_convergence")
    assert fits["headline"] == {"law": "l_n", "title": "L(n)"}
    fit, tokens = _final(fits, "l_n"), _final(fits, "d_star")
    assert fit["loss"] == "normalized_mse_ema"
    assert not {"not_converged", "tokens_unknown"} & {*fit["warnings"]}
    for found in (fit, tokens):
        assert found["rows"] == "all converged runs"
        assert [("converged is false" in d["reason"]) for d in found["dropped"]] == [True]
    assert tokens["params"]["s"] == pytest.approx(0.6, abs=0.01)


def test_the_largest_n_of_six_can_be_held_out(fits_of: Callable[[str], dict[str, Any]]) -> None:
    fits = fits_of("to_convergence")
    assert fits["n_runs"] >= 6
    assert _final(fits, "l_n")["n_used"] >= 5
    assert [f for f in fits["fits"] if f["law"] == "d_star" and f["holdout"]]


def test_subjects_of_several_sizes_get_l_s(
    tmp_path: Path,
) -> None:
    """Three subjects stand on the cells of the packaged model's three depths."""
    assert laws_named("subject_size") == {"l_s"}
    plans = plans_of("subject_size", tmp_path)
    depths = sorted({plan.config["activations"]["layer"] for plan in plans})
    sizes = dict(zip(depths, (7e7, 4e8, 3e9), strict=True))
    law = LAWS["l_s"](
        **{"alpha": 0.5, "beta_s": -0.02, "beta_n": -0.45, "gamma": 0.01},
        **{"zeta": -4.0, "eta": 0.1},
    )
    frame = pd.DataFrame(
        {
            "n_latents": [plan.autoencoder.n_latents for plan in plans],
            "k": [plan.autoencoder.k for plan in plans],
            "tokens": [plan.tokens for plan in plans],
            "subject_params": [sizes[plan.config["activations"]["layer"]] for plan in plans],
        }
    )
    at = {"n": frame["n_latents"].to_numpy(float), "subject": frame["subject_params"].to_numpy()}
    frame["normalized_mse"] = law.predict(at)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    out = tmp_path / "fit.json"
    words = ["--table", str(tmp_path / "runs.csv"), "--json", str(out), "--bootstrap", "0"]
    assert fit_command(["--law", "l_s", *words]) == 0
    assert json.loads(out.read_text())["rms_log_residual"] < 1e-6


def test_the_others_say_what_reads_them() -> None:
    for name, reader in ELSEWHERE.items():
        assert reader in feeds(name)
