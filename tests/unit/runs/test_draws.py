"""What each unit of a draw does to a run's numbers: kept beside them, and read by who compares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scaling.runs.draws import read_draws, write_draws

MOVES = {"a": np.array([0.5, -0.25]), "b": np.array([1.0, 2.0, -3.0])}


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    write_draws(tmp_path, "m", "abc", MOVES)
    found = read_draws(tmp_path, "m", "abc")
    assert {name: one.tolist() for name, one in found.items()} == {
        name: one.tolist() for name, one in MOVES.items()
    }
    assert read_draws(tmp_path, "m", "abd") == {}, "measured otherwise: these do not compare"
    assert read_draws(tmp_path, "other", "abc") == {}
    write_draws(tmp_path, "m", "abc", {})  # measured again, without: the old ones are not its
    assert read_draws(tmp_path, "m", "abc") == {}
    assert list((tmp_path / "evaluation").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_what_cannot_be_read_is_as_if_it_were_not_there(
    tmp_path: Path, content: bytes | None
) -> None:
    write_draws(tmp_path, "m", "abc", MOVES)
    [path] = (tmp_path / "evaluation").iterdir()
    path.write_bytes(path.read_bytes()[:90] if content is None else content)
    assert read_draws(tmp_path, "m", "abc") == {}


def test_columns_that_are_no_draws_are_left_out(tmp_path: Path) -> None:
    odd = {"nan": np.array([1.0, np.nan]), "table": np.ones((2, 2))}
    write_draws(tmp_path, "m", "abc", {**MOVES, **odd})
    assert read_draws(tmp_path, "m", "abc").keys() == MOVES.keys()
