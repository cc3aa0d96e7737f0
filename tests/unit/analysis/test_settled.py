"""Which runs are shown converged, by ladders and by curves, and fits of those alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricate import PLANTED, Cell, planted_table

from analysis.errors import TableError
from analysis.fit import fit_command
from analysis.fitting.fit import fit_law
from analysis.judgement.convergence import ladders_at
from analysis.judgement.curves import last_doubling
from analysis.judgement.settled import (
    Settled,
    converged_runs,
    select_converged,
)
from analysis.laws.joint import LatentsAndK
from analysis.records.table import RunTable

# PLANTED falls by 1% per doubling at about 33M tokens for n = 1024, k = 16, earlier for smaller n.
CELLS = [
    Cell(n, k, tokens)
    for n in (256, 512, 1024, 2048, 4096)
    for k in (4, 8, 16)
    for tokens in (2_000_000, 8_000_000, 32_000_000, 128_000_000, 512_000_000)
]


def _settled_by_law(cells: list[Cell]) -> np.ndarray:
    """From the law itself: the fall per doubling over the step the ladder judges by."""
    ladder = [2e6, 8e6, 32e6, 128e6, 512e6]

    def loss(cell: Cell, tokens: float) -> float:
        point = {"n": np.array([cell.n]), "k": np.array([cell.k]), "tokens": np.array([tokens])}
        return float(PLANTED.predict(point)[0])

    falls = []
    for cell in cells:
        low = ladder[min(ladder.index(cell.tokens), 3)]
        falls.append(1 - (loss(cell, 4 * low) / loss(cell, low)) ** 0.5)
    return np.array(falls) <= 0.01


def test_ladders_show_the_runs_that_the_law_has_converged() -> None:
    table = planted_table(PLANTED, CELLS, noise=0.0)
    settled = converged_runs(table)
    expected = _settled_by_law(CELLS)
    assert 0 < expected.sum() < len(CELLS)
    np.testing.assert_array_equal(settled.mask, expected)
    shortest = settled.verdicts[0]
    assert "falls by" in shortest.reason
    assert "per doubling of tokens from 2M" in shortest.reason
    assert {v.shown_by for v in settled.verdicts} == {"", "ladder"}


def test_one_budget_shows_nothing() -> None:
    table = planted_table(PLANTED, CELLS, noise=0.0).at_budget(512e6)
    settled = converged_runs(table)
    assert not settled.mask.any()
    with pytest.raises(TableError, match=r"none of the 15 runs .* no other budget.*longer runs"):
        select_converged(table)


def test_a_budget_is_judged_by_the_next_one() -> None:
    """The next larger, not the largest; where there is none, the next smaller."""
    table = planted_table(PLANTED, [Cell(256, 4, d) for d in (1000, 2000, 4000, 32000)], noise=0.0)
    table = replace(table, loss=np.array([0.8, 0.7, 0.65, 0.5]))
    at = {d: ladders_at(d, table).falls for d in (2000.0, 32000.0)}
    assert at[2000.0] == pytest.approx([1 - 0.65 / 0.7])
    assert at[32000.0] == pytest.approx([1 - (0.5 / 0.65) ** (1 / 3)])


def test_a_later_fall_takes_the_verdict_back() -> None:
    table = planted_table(PLANTED, [Cell(256, 4, d) for d in (1000, 2000, 4000, 8000)], noise=0.0)

    def mask_of(*loss: float) -> list[bool]:
        return converged_runs(replace(table, loss=np.array(loss))).mask.tolist()

    assert mask_of(0.400, 0.398, 0.397, 0.396) == [True] * 4
    assert mask_of(0.500, 0.400, 0.398, 0.397) == [False, True, True, True]
    assert mask_of(0.400, 0.398, 0.350, 0.349) == [False, False, True, True]
    assert mask_of(0.400, 0.398, 0.397, 0.350) == [False] * 4
    rising = converged_runs(replace(table, loss=np.array([0.400, 0.399, 0.398, 0.42])))
    assert not rising.mask.any()
    assert "rises by 5.5% per doubling" in rising.verdicts[-1].reason


def test_the_selection_is_fitted_by_laws_of_converged_runs_and_recovers_them() -> None:
    table = planted_table(PLANTED, CELLS, noise=0.001)
    with pytest.raises(TableError, match=r"one token budget.*--converged"):
        fit_law(LatentsAndK, table)
    chosen, dropped = select_converged(table)
    assert len(chosen) + len(dropped) == len(table)
    assert len(np.unique(chosen.points["tokens"])) > 1
    assert "at most 1% of the loss" in chosen.shown_converged
    assert chosen.dropped == dropped
    fit = fit_law(LatentsAndK, chosen)
    limit = {a: chosen.points[a] for a in ("n", "k")}
    error = fit.log_predict(limit) - PLANTED.log_predict({**limit, "tokens": 1e30 + 0 * limit["n"]})
    # What the rule leaves: up to 1% / (1 - 2^-0.55) = 3.2% above the limit of endless training.
    assert error.min() > 0
    assert error.max() < 0.032


def test_the_command_fits_the_converged_runs_of_several_budgets(tmp_path: Path) -> None:
    table = planted_table(PLANTED, CELLS, noise=0.001)
    path, out = tmp_path / "runs.csv", tmp_path / "fit.json"
    pd.DataFrame({**table.points, "loss": table.loss}).to_csv(path, index=False)
    arguments = ["--law", "l_nk", "--table", str(path), "--json", str(out), "--bootstrap", "0"]
    assert fit_command(arguments) == 2
    assert fit_command([*arguments, "--converged"]) == 0
    found = json.loads(out.read_text())
    assert found["n_used"] == len(select_converged(table).table)
    assert found["dropped"][0]["reason"].startswith("not shown converged: its loss falls by")
    assert found["title"] == "L(n,k)"
    assert not {"not_converged", "tokens_unknown"} & {*found["warnings"]}


def test_the_message_says_what_the_selection_costs() -> None:
    short = [cell for cell in CELLS if cell.n < 4096 or cell.tokens < 10_000_000]
    settled = converged_runs(planted_table(PLANTED, short, noise=0.0))
    assert "The largest n among them is 2048, of 4096 trained." in settled.message
    stored = settled.json()
    assert len(stored["runs"]) == len(short)
    assert stored["runs"][0]["run"] == "run 0"


def test_tokens_are_needed() -> None:
    table = planted_table(PLANTED, CELLS, noise=0.0)
    bare = replace(table, points={a: table.points[a] for a in ("n", "k")})
    with pytest.raises(TableError, match="without tokens"):
        converged_runs(bare)


def _curve(fall: float, *, noise: float = 0.0, rows: int = 40, name: str = "run 0") -> pd.DataFrame:
    """A power law that falls by `fall` per doubling, logged every 100k tokens."""
    tokens = np.arange(1, rows + 1) * 100_000
    loss = 0.3 * (tokens / tokens[-1]) ** np.log2(1 - fall)
    loss *= np.exp(noise * np.random.default_rng(1).standard_normal(rows))
    columns = {"train/lr": 2e-3, "train/normalized_mse": loss, "eval/normalized_mse": loss}
    return pd.DataFrame({"run_id": name, "tokens": tokens, **columns})


def _judge(curve: pd.DataFrame, loss_name: str = "normalized_mse") -> Settled:
    one: RunTable = planted_table(PLANTED, [Cell(256, 4, 4_000_000)], noise=0.0)
    return converged_runs(replace(one, loss_name=loss_name), curve)


@pytest.mark.parametrize("fall", [0.002, 0.02, 0.2])
def test_the_fall_over_the_last_doubling_is_read_off_a_curve(fall: float) -> None:
    found = last_doubling(_curve(fall), "normalized_mse")
    assert found.fall == pytest.approx(fall)
    assert found.column == "eval/normalized_mse"
    settled = _judge(_curve(fall))
    assert settled.mask.tolist() == [fall < 0.01]
    assert settled.verdicts[0].shown_by == ("curve" if fall < 0.01 else "")


def test_noise_must_leave_no_doubt() -> None:
    noisy = _curve(0.005, noise=0.01).drop(columns="eval/normalized_mse")
    found = last_doubling(noisy, "normalized_mse")
    assert found.column == "train/normalized_mse"
    assert found.at_most > 0.01 > found.at_most - 0.02
    assert not _judge(noisy).mask.any()
    assert "at most" in _judge(noisy).verdicts[0].reason
    quiet = _curve(0.005, noise=0.001).drop(columns="eval/normalized_mse")
    assert _judge(quiet).mask.all()


def _with_decay(curve: pd.DataFrame) -> pd.DataFrame:
    return curve.assign(**{"train/lr": np.minimum(1.0, np.linspace(5, 0, len(curve)))})


def _with_last_rate(share: float) -> pd.DataFrame:
    curve = _curve(0.002)
    return curve.assign(**{"train/lr": np.append(np.ones(len(curve) - 1), share)})


def test_a_rate_that_falls_by_less_than_a_percent_is_constant() -> None:
    assert _judge(_with_last_rate(0.995)).mask.all()


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        (_with_decay(_curve(0.002)), "learning rate falls"),
        (_with_last_rate(0.98), "learning rate falls"),
        (_curve(0.002).drop(columns="train/lr"), "no train/lr"),
        (_curve(0.002, rows=1), "no eval/normalized_mse"),
        (_curve(0.002).tail(5).drop(columns="eval/normalized_mse"), "from half its tokens"),
        (_curve(-0.05), "fell by -5.0%"),
    ],
)
def test_curves_that_show_nothing(curve: pd.DataFrame, words: str) -> None:
    settled = _judge(curve)
    assert not settled.mask.any()
    assert words in settled.verdicts[0].reason


def test_the_training_loss_says_nothing_of_the_averaged_weights() -> None:
    settled = _judge(_curve(0.002), loss_name="normalized_mse_ema")
    assert settled.verdicts[0].reason == "its curve has no eval/normalized_mse_ema"


def test_longer_runs_outweigh_a_flat_curve() -> None:
    pair = [Cell(256, 4, 2_000_000), Cell(256, 4, 4_000_000)]
    table = replace(planted_table(PLANTED, pair, noise=0.0), loss=np.array([0.40, 0.30]))
    curves = pd.concat([_curve(0.002, name="run 0"), _curve(0.002, name="run 1")])
    settled = converged_runs(table, curves)
    assert [v.shown_by for v in settled.verdicts] == ["", "curve"]


def test_a_run_that_its_stopping_rule_ended_is_converged_unless_longer_runs_deny_it() -> None:
    cells = [Cell(256, 4, 2_000_000), Cell(256, 4, 4_000_000), Cell(512, 4, 2_000_000)]
    table = replace(planted_table(PLANTED, cells, noise=0.0), loss=np.array([0.40, 0.30, 0.3]))
    settled = converged_runs(replace(table, stopped=(True, True, False)))
    assert [v.shown_by for v in settled.verdicts] == ["", "stopping rule", ""]
    assert "converged is false" in settled.verdicts[2].reason
    assert not converged_runs(table).mask.any()
