from __future__ import annotations

import numpy as np
import pytest
from fabricate import PLANTED, demo_cells, losses_of, points_of
from gpt4 import gpt4_table

from analysis.errors import TableError
from analysis.fitting.fit import fit_law
from analysis.judgement.holdout import judge, rows_matching
from analysis.laws.joint import LatentsAndK, LatentsKTokensTilted
from analysis.records.table import RunTable
from analysis.uncertainty.doubt import prediction_interval


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("n>65536", 15),
        (" n_latents >= 131072 ", 15),
        ("n > 65536 and k == 32", 3),
        ("n > 65536 or k < 64", 21),
        ("not n <= 65536", 15),
        ("65536 < n <= 262144", 10),
        ("n / k > 4096", 3),
        ("n * k == 131072", 2),
        ("n + k < 4096", 5),
        ("k != 32", 36),
        ("-n < -262144", 5),
        ("n > 1e5", 15),
    ],
)
def test_expressions(expression: str, count: int) -> None:
    assert int(rows_matching(expression, gpt4_table()).sum()) == count


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("n >", "not an expression"),
        ("", "not an expression"),
        ("n > 1; k > 2", "not an expression"),
        ("width > 3", "names width"),
        ("tokens > 3", "names tokens"),
        ("n", "true or false"),
        ("n + k", "true or false"),
        ("1 < 2", "true or false"),
        ("n > 1e9", "no row"),
        ("n > 0", "every row"),
        ("__import__('os').system('true')", "Call"),
        ("n.__class__ == 1", "Attribute"),
        ("n[0] == 1", "Subscript"),
        ("n > 'a'", "Constant"),
        ("n ** 99 > 1", "operator Pow"),
        ("n in (1, 2)", "Tuple"),
        ("n > 1 / 0", "zero"),
        ("(lambda: n)() > 1", "Call"),
        ("n > 1 and " * 30 + "k > 1", "longer"),
        ("(" * 120 + "n" + ")" * 60, "not an expression"),
    ],
)
def test_bad_expressions(expression: str, words: str) -> None:
    with pytest.raises(TableError, match=words) as refusal:
        rows_matching(expression, gpt4_table())
    assert "\n" not in str(refusal.value)
    assert "--holdout" in str(refusal.value)


def test_prediction_intervals_cover_new_runs_and_the_laws_own_do_not() -> None:
    """Nominal 95 % over 50 planted sweeps with the largest n held out; errors share a fit."""
    cells = demo_cells()
    points, held_out = points_of(cells), points_of(cells)["n"] == 4096
    names = tuple(map(str, range(len(cells))))
    inside, inside_without_noise = [], []
    for seed in range(50):
        loss = losses_of(PLANTED, cells, 0.01, seed)
        table = RunTable(points, loss, names, "loss", names)
        fit = fit_law(LatentsKTokensTilted, table.select(~held_out))
        judged = judge(fit, table.select(held_out))
        inside.append(judged.in_pi95 / int(held_out.sum()))
        low, high = prediction_interval(fit, judged.table.points, noise=False)
        inside_without_noise.append(
            np.mean((low <= judged.table.loss) & (judged.table.loss <= high))
        )
    assert 0.90 <= np.mean(inside) <= 0.99
    assert np.mean(inside_without_noise) < np.mean(inside) - 0.03


def test_judging_is_in_logs_of_the_loss() -> None:
    table = gpt4_table()
    held_out = rows_matching("n > 65536", table)
    fit = fit_law(LatentsAndK, table.select(~held_out))
    judged = judge(fit, table.select(held_out))
    ratio = judged.table.loss / fit.law.predict(judged.table.points)
    np.testing.assert_allclose(judged.residuals, np.log(ratio), atol=1e-10)
    assert judged.worst_log == pytest.approx(np.abs(np.log(ratio)).max())
    assert judged.rms_log == pytest.approx(np.sqrt(np.mean(np.log(ratio) ** 2)))
