"""A stored fit whose contents are no fit's is refused by the name of its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planted_fit import planted_fit

from analysis.command import write_json
from analysis.errors import TableError
from analysis.planning.context import read_context
from analysis.planning.stored import read_law, stored_law
from analysis.predict import predict_command
from analysis.study.fitted import FittedLaw, to_json


@pytest.fixture(scope="module")
def clustered() -> FittedLaw:
    return planted_fit(clusters="n")


def _file(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "fits.json"
    path.write_text(json.dumps(content))
    return path


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    *inside, last = key.split(".")
    for name in inside:
        content = content[name]
    content[last] = value


def _with_diagonal(rows: list[list[float]], value: Any) -> list[list[Any]]:
    return [[value if i == j == 1 else x for j, x in enumerate(row)] for i, row in enumerate(rows)]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("params.alpha", NAN, "params.alpha is nan and not a finite number"),
        ("params.alpha", INF, "params.alpha is inf"),
        ("params.alpha", "1", "params.alpha is '1'"),
        ("params.alpha", 10**400, "params.alpha is a number of too many digits"),
        ("params", [1], r"params is \[1\] and not an object"),
        ("reference.n0", 0, "reference.n0 is 0 and not a number above 0"),
        ("reference.n0", "big", "reference.n0 is 'big'"),
        ("reference", 3, "reference is 3 and not an object"),
        ("degrees_of_freedom", 0, "degrees_of_freedom is 0 and not a whole number above 0"),
        ("degrees_of_freedom", NAN, "degrees_of_freedom is nan"),
        ("n_used", INF, "n_used is inf and not a whole number"),
        ("n_used", True, "n_used is True"),
        ("variance", -1e-4, "variance is -0.0001 and not a number from 0 on"),
        ("variance", NAN, "variance is nan"),
        ("variance", None, "variance is None"),
        ("covariance", [[1.0]], r"covariance is \[\[1.0\]\] and not 10 lists of 10 numbers"),
        ("covariance", "x", "covariance is 'x'"),
        ("covariance_order", ["alpha"], r"covariance_order is \['alpha'\] and not the names alpha"),
        ("covariance_order", [["alpha"]], "covariance_order is"),
        ("ranges.n", [0, 0], r"ranges.n is \[0, 0\] and not \[LOW, HIGH\] above 0"),
        ("ranges.n", [9, 3], "ranges.n is"),
        ("ranges.n", 4, "ranges.n is 4"),
        ("ranges", [], r"ranges is \[\] and not an object"),
        ("warning_messages", ["x"], r"warning_messages is \['x'\]"),
        ("clustered", "n", "clustered is 'n' and not an object"),
        ("clustered.by", 3, "clustered.by is 3 and not text"),
        ("clustered.degrees_of_freedom", 0, "clustered.degrees_of_freedom is 0"),
        ("clustered.variance", -1.0, "clustered.variance is -1.0"),
        ("clustered.covariance", [], r"clustered.covariance is \[\]"),
        ("provenance", {"d_model": ["wide"]}, "provenance.d_model is 'wide' and not a whole"),
        ("provenance", {"d_model": 576}, "provenance.d_model is 576 and not a list"),
        ("provenance", {"d_model": [0]}, "provenance.d_model is 0"),
    ],
)
def test_a_value_that_no_fit_has_is_refused_by_its_key(
    clustered: FittedLaw, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    content = json.loads(json.dumps(to_json(clustered)))
    _set(content, key, value)
    path = _file(tmp_path, content)
    with pytest.raises(TableError, match=message) as error:
        read_law(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("value", [-1.0, NAN, "x"])
@pytest.mark.parametrize("inside", ["", "clustered."])
def test_a_variance_below_zero_and_no_number_in_a_covariance(
    clustered: FittedLaw, tmp_path: Path, inside: str, value: Any
) -> None:
    content = json.loads(json.dumps(to_json(clustered)))
    part = content["clustered"] if inside else content
    part["covariance"] = _with_diagonal(part["covariance"], value)
    with pytest.raises(TableError, match=rf"{inside}covariance\[1\]\[1\] is "):
        read_law(_file(tmp_path, content))


def test_what_a_fit_writes_is_read_with_its_clusters_and_its_provenance(
    clustered: FittedLaw, tmp_path: Path
) -> None:
    provenance = {"d_model": [576], "data_tokens": [10**6]}
    path = _file(tmp_path, {**to_json(clustered), "provenance": provenance})
    assert (read_law(path).d_model, read_law(path).shared_by) == (576, "n")
    assert read_context(path).data_tokens == 10**6
    several = _file(tmp_path, {**to_json(clustered), "provenance": {"d_model": [576, 768]}})
    assert read_law(several).d_model is None


def test_the_size_of_the_data_is_checked_too(clustered: FittedLaw, tmp_path: Path) -> None:
    content = {**to_json(clustered), "provenance": {"data_tokens": ["many"]}}
    with pytest.raises(TableError, match=r"fits\.json: provenance.data_tokens is 'many'"):
        read_context(_file(tmp_path, content))


def test_a_law_that_is_no_text_is_not_known(clustered: FittedLaw) -> None:
    with pytest.raises(TableError, match=r"the law \['l_nk'\] is not known here"):
        stored_law({**to_json(clustered), "law": ["l_nk"]}, source="fits.json")


def test_json_without_a_floor_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fits.json"
    path.write_text('{"fits":' * 100_000)
    assert predict_command([str(path), "n=12"]) == 2
    assert "is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_result_that_json_cannot_say_is_not_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "out.json"
    with pytest.raises(TableError, match=r"out\.json is not written"):
        write_json(path, {"loss": value})
    assert not path.exists()
