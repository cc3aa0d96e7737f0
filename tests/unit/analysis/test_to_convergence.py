"""The column `converged`: which runs l_n takes, and whose tokens are tokens to convergence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.errors import TableError
from analysis.fit import fit_command
from analysis.laws.powers import OfLatents, TokensToConvergence
from analysis.records.table import table_from_frame, tokens_to_convergence

SIZES = (256, 512, 1024, 2048, 4096, 8192)
LIMIT = 8_800_000
LOSS = OfLatents(E=0.1, A=4.0, b=0.45)
TOKENS = TokensToConvergence(D0=2e6, s=0.65, n0=1024.0)


def rows(converged: Sequence[Any] = (True,) * 5 + (False,)) -> pd.DataFrame:
    """One run a size; what is not converged has a loss and tokens that lie on no law."""
    points = {"n": np.array(SIZES, dtype=float)}
    loss, tokens = LOSS.predict(points), TOKENS.predict(points)
    ended = np.array([value is True for value in converged])
    return pd.DataFrame(
        {
            **{"run_id": [f"run{n}" for n in SIZES], "n_latents": SIZES, "k": 16},
            "tokens": np.where(ended, tokens.round(), LIMIT),
            "normalized_mse": np.where(ended, loss, 1.3 * loss),
            "converged": pd.Series(converged, dtype=object),
        }
    )


def fit(tmp_path: Path, frame: pd.DataFrame, law: str, *flags: str) -> tuple[int, dict[str, Any]]:
    table, out = tmp_path / "runs.csv", tmp_path / "fit.json"
    frame.to_csv(table, index=False)
    words = ["--law", law, "--table", str(table), "--json", str(out), "--bootstrap", "0", *flags]
    code = fit_command(words)
    return code, json.loads(out.read_text()) if code == 0 else {}


def test_l_n_of_the_runs_that_their_rule_ended(tmp_path: Path) -> None:
    code, found = fit(tmp_path, rows(), "l_n", "--converged")
    assert code == 0
    assert found["title"] == "L(n)"
    assert found["n_used"] == 5
    assert found["warnings"] == []
    assert found["params"] == pytest.approx(LOSS.parameters, rel=1e-6)
    (dropped,) = found["dropped"]
    assert dropped["run"] == "run8192"
    assert "converged is false" in dropped["reason"]


def test_d_star_of_their_tokens_and_of_no_others(tmp_path: Path) -> None:
    code, found = fit(tmp_path, rows(), "d_star")
    assert code == 0
    assert found["n_used"] == 5
    assert found["params"]["s"] == pytest.approx(0.65, abs=1e-5)
    (dropped,) = found["dropped"]
    assert (dropped["run"], "limit of tokens" in dropped["reason"]) == ("run8192", True)


def test_an_empty_cell_is_no_convergence(tmp_path: Path) -> None:
    code, found = fit(tmp_path, rows((True, True, True, True, None, False)), "d_star")
    assert code == 0
    assert [drop["run"] for drop in found["dropped"]] == ["run4096", "run8192"]
    assert "no stopping rule" in found["dropped"][0]["reason"]


def _bare(frame: pd.DataFrame, **changes: Iterable[float] | float) -> pd.DataFrame:
    return frame.drop(columns="converged").assign(**changes)


REFUSED = {
    "none converged": (rows((False,) * 6), "converged is true for none of the 6 finished runs"),
    "no word": (rows(("perhaps",) * 6), "column converged holds 'perhaps'"),
    "a ladder": (
        pd.concat([_bare(rows()), _bare(rows(), tokens=1e6, run_id=[f"b{n}" for n in SIZES])]),
        "several tokens at n = 256, k = 16",
    ),
    "one budget": (_bare(rows(), tokens=1e6), "the same tokens at every n (1e+06)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_budgets_are_no_tokens_to_convergence(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame, words = REFUSED[case]
    code, _ = fit(tmp_path, frame, "d_star")
    error = capsys.readouterr().err
    assert code == 2
    assert words in error
    assert "converged" in error.split(words)[1] + words


def test_a_column_of_that_name_may_have_several_values_at_an_n(tmp_path: Path) -> None:
    """Two seeds took two numbers of tokens: that is scatter, not a ladder."""
    one = _bare(rows((True,) * 6))
    two = one.assign(tokens=1.1 * one["tokens"], run_id=[f"b{n}" for n in SIZES])
    frame = pd.concat([one, two]).rename(columns={"tokens": "tokens_to_convergence"})
    code, found = fit(tmp_path, frame, "d_star")
    assert (code, found["n_used"]) == (0, 12)


def test_a_table_of_losses_holds_the_tokens_too() -> None:
    table = table_from_frame(rows(), source="it")
    assert table.stopped == (True, True, True, True, True, False)
    assert table.select(table.points["n"] > 4000).stopped == (True, False)
    found = tokens_to_convergence(table)
    np.testing.assert_array_equal(found.loss, table.points["tokens"][:5])
    assert (found.response, {*found.points}) == ("tokens", {"n", "k"})
    assert [drop.run for drop in found.dropped] == ["run8192"]
    with pytest.raises(TableError, match="nothing says which runs were trained to convergence"):
        tokens_to_convergence(table_from_frame(_bare(rows()), source="it"))
