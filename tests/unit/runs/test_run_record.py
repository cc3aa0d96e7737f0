from dataclasses import replace
from pathlib import Path

import pytest

from scaling.runs.fields import COST_FIELDS, RESULT_FIELDS, Field
from scaling.runs.record import Record, RunError, RunOutcome, Status, problems_of

_DOCS = Path(__file__).parents[3] / "docs" / "records.md"


def _example(field: Field) -> object:
    return {int: 3, float: 0.5, str: "x", bool: True, dict: {}, list: []}[field.types[0]]


@pytest.fixture
def done() -> Record:
    return Record(
        "ab",
        "grid",
        Status.done,
        result={name: _example(field) for name, field in RESULT_FIELDS.items()},
        cost={name: _example(field) for name, field in COST_FIELDS.items()},
    )


def test_a_record_comes_back_from_json(done: Record):
    failed = replace(done, status=Status.failed, error=RunError("E", "m", "t", 1), warnings=["w"])
    for record in (done, failed, Record("ab", "grid")):
        assert Record.from_json(record.to_json()) == record
    assert done.to_json()["status"] == "done"


def test_numbers_that_are_not_finite_become_null(done: Record):
    record = replace(done, result={"normalized_mse": float("nan"), "deep": [float("inf"), 1.0]})
    assert record.to_json()["result"] == {"normalized_mse": None, "deep": [None, 1.0]}


@pytest.mark.parametrize(
    "damage", [{"schema_version": 2}, {"status": "finished"}, {"surprise": 1}, {"error": {"x": 1}}]
)
def test_what_is_no_record_is_refused(done: Record, damage):
    with pytest.raises((ValueError, TypeError)):
        Record.from_json({**done.to_json(), **damage})


def test_an_outcome_replaces_result_and_error_and_adds_to_the_cost(done: Record):
    before = replace(done, status=Status.running, error=RunError("E", "m"))
    after = before.with_outcome(RunOutcome(Status.diverged, {"k": 1}, {"train_s": 9.0}, ["w"]))
    assert (after.status, after.result, after.error) == (Status.diverged, {"k": 1}, None)
    assert after.cost == {**done.cost, "train_s": 9.0}


def test_an_inexact_resume_is_never_forgotten(done: Record):
    inexact = replace(done, cost={"bit_exact": False})
    for resumed_at_step, expected in ((7, False), (0, True)):
        cost = {"bit_exact": True, "resumed_at_step": resumed_at_step}
        after = inexact.with_outcome(RunOutcome(Status.done, cost=cost))
        assert after.cost["bit_exact"] is expected


def test_departures_from_the_schema_are_told_field_by_field(done: Record):
    assert problems_of(done) == []
    del done.result["l0"]
    done.result["extra"] = 1
    done.result["epochs"] = None  # allowed: unlimited data
    done.cost["wall_s"] = None
    done.result["k"] = True
    assert problems_of(done) == [
        "result.l0 is missing",
        "result.extra is not in the schema",
        "result.k = True has the wrong type",
        "cost.wall_s = None has the wrong type",
    ]
    assert problems_of(replace(done, status=Status.diverged)) == []


def test_every_field_is_documented_with_its_unit():
    text = _DOCS.read_text()
    for name, field in {**RESULT_FIELDS, **COST_FIELDS}.items():
        assert f"| `{name}` | {field.unit or '-'} |" in text
    for status in Status:
        assert f"| `{status}` |" in text
