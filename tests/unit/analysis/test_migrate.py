"""Records of other schema versions."""

from __future__ import annotations

from typing import Any

import pytest
from fabricate import Cell, record

from analysis.records.migrate import STEPS, to_current
from scaling.runs.record import SCHEMA_VERSION, Record, problems_of

OLD = record(Cell(256, 4, 125_000), 0.4)


def renamed(row: dict[str, Any]) -> dict[str, Any]:
    result = dict(row["result"])
    return {**row, "result": {**result, "width": result.pop("n_latents")}}


def doubled(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "result": {**row["result"], "width": 2 * row["result"]["width"]}}


def test_every_version_has_a_step_to_the_next() -> None:
    assert sorted(STEPS) == list(range(1, SCHEMA_VERSION))


def test_steps_are_taken_in_order_and_leave_the_record_alone() -> None:
    before = record(Cell(256, 4, 125_000), 0.4)
    migrated = to_current(OLD, steps={1: renamed, 2: doubled}, current=3)
    assert (migrated["schema_version"], migrated["result"]["width"]) == (3, 512)
    assert before == OLD
    again = to_current(migrated, steps={1: renamed, 2: doubled}, current=3)
    assert again == migrated


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (9, f"schema_version 9 is newer than {SCHEMA_VERSION}.*update it"),
        (0, "schema_version is 0; a record has a whole number from 1"),
        ("1", "schema_version is '1'"),
        (None, "schema_version is None"),
        (True, "schema_version is True"),
    ],
)
def test_other_versions_are_refused_by_name(version: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_current({**OLD, "schema_version": version})


def test_a_gap_in_the_steps_is_named() -> None:
    with pytest.raises(ValueError, match="schema_version 2 has no migration to 3"):
        to_current(OLD, steps={1: renamed}, current=3)


def test_records_from_before_meshes_say_that_they_had_one_process() -> None:
    cost = {name: value for name, value in OLD["cost"].items() if name != "mesh"}
    old = {**OLD, "cost": cost}
    assert problems_of(Record.from_json(old)) == ["cost.mesh is missing"]
    assert problems_of(Record.from_json(to_current(old))) == []
    assert to_current({**OLD, "cost": {**OLD["cost"], "mesh": [2, 4]}})["cost"]["mesh"] == [2, 4]
    assert to_current({**OLD, "cost": {}})["cost"] == {}
