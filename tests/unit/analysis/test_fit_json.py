"""The JSON of a fit is enough to predict from, with intervals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from gpt4 import gpt4_table
from scipy.special import stdtrit

from analysis.laws import LAWS
from analysis.laws.joint import LatentsAndK
from analysis.records.table import table_from_frame
from analysis.study.fitted import fit_table, to_json
from analysis.uncertainty.doubt import prediction_interval


def test_the_json_alone_gives_the_prediction_and_its_interval() -> None:
    table = gpt4_table()
    fitted = fit_table(LatentsAndK, table, n_bootstrap=0)
    found = json.loads(json.dumps(to_json(fitted)))
    law = LAWS[found["law"]](**found["params"], **found["reference"])
    jacobian = law.jacobian(table.points)
    doubt = np.einsum("mp,pq,mq->m", jacobian, np.array(found["covariance"]), jacobian)
    t = stdtrit(found["degrees_of_freedom"], 0.975)
    half_width = t * np.sqrt(found["variance"] + doubt)
    interval = prediction_interval(fitted.fit, table.points)
    np.testing.assert_allclose(law.predict(table.points) * np.exp(half_width), interval.high)
    assert found["degrees_of_freedom"] == 39
    assert found["variance"] == pytest.approx(2 * found["half_sum_of_squares"] / 39)
    assert found["ranges"] == {"n": [2048.0, 524288.0], "k": [32.0, 512.0]}


def _frame(**columns: object) -> pd.DataFrame:
    n = 2.0 ** np.arange(8, 14)
    return pd.DataFrame({"n": n, "k": 16, "loss": 0.3 + 20 / n, **columns})


def test_flops_and_subjects_are_axes_where_every_run_has_them() -> None:
    n = _frame()["n"]
    table = table_from_frame(_frame(flops_dense=1e9 * n, subject_params=135e6), source="it")
    np.testing.assert_array_equal(table.points["flops"], 1e9 * n)
    assert set(table.points["subject"]) == {135e6}
    chosen = table_from_frame(_frame(flops_dense=1e9 * n, flops=n), source="it")
    np.testing.assert_array_equal(chosen.points["flops"], n)
    gaps = table_from_frame(_frame(subject_params=[None, 1, 2, 3, 4, 5], flops=0), source="it")
    assert set(gaps.points) == {"n", "k"}


def test_tokens_to_convergence_are_the_value_and_no_axis() -> None:
    n = _frame()["n"]
    table = table_from_frame(_frame(tokens=1e5 * n), source="it", response="tokens")
    np.testing.assert_array_equal(table.loss, 1e5 * n)
    assert (table.response, table.loss_name) == ("tokens", "tokens")
    assert set(table.points) == {"n", "k"}
    assert table_from_frame(_frame(tokens=1e5 * n), source="it").points["tokens"][0] == 1e5 * n[0]
