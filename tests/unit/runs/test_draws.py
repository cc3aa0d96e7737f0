"""What each unit of a draw does to a run's numbers: kept beside them, and read by who compares."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaling.runs.draws import Draws, read_draws, write_draws

MOVES = {"a": np.array([0.5, -0.25]), "b": np.array([1.0, 2.0, -3.0])}
NOTHING = Draws({})


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    write_draws(tmp_path, "m", "abc", MOVES, units="of a text")
    found = read_draws(tmp_path, "m", "abc")
    assert {name: one.tolist() for name, one in found.moves.items()} == {
        name: one.tolist() for name, one in MOVES.items()
    }
    assert found.units == "of a text"
    assert read_draws(tmp_path, "m", "abd") == NOTHING, "measured otherwise: these do not compare"
    assert read_draws(tmp_path, "other", "abc") == NOTHING
    write_draws(tmp_path, "m", "abc", {})  # measured again, without: the old ones are not its
    assert read_draws(tmp_path, "m", "abc") == NOTHING
    assert list((tmp_path / "evaluation").iterdir()) == []


def _packed(of_name: Callable[[zipfile.ZipFile], None]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        of_name(file)
    return content.getvalue()


def _array(save: Callable[[io.BytesIO], None]) -> bytes:
    content = io.BytesIO()
    save(content)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        None,
        _array(lambda file: np.save(file, np.zeros(3))),
        _array(lambda file: np.savez(file, measured_as="abc", m=np.array(["a", "b"]))),
        _packed(lambda file: [file.writestr(name, "abc") for name in ("measured_as", "m")]),  # type: ignore[arg-type,return-value]
    ],
)
def test_what_cannot_be_read_is_as_if_it_were_not_there(
    tmp_path: Path, content: bytes | None
) -> None:
    write_draws(tmp_path, "m", "abc", MOVES)
    [path] = (tmp_path / "evaluation").iterdir()
    path.write_bytes(path.read_bytes()[:90] if content is None else content)
    assert read_draws(tmp_path, "m", "abc") == NOTHING


def test_files_without_the_name_of_their_units_are_read(tmp_path: Path) -> None:
    write_draws(tmp_path, "m", "abc", MOVES, units="of a text")
    [path] = (tmp_path / "evaluation").iterdir()
    with np.load(path) as arrays:
        older = {name: arrays[name] for name in arrays.files if name != "units"}
    np.savez(path, **older)
    found = read_draws(tmp_path, "m", "abc")
    assert (found.moves.keys(), found.units) == (MOVES.keys(), "")


def test_columns_that_are_no_draws_are_left_out(tmp_path: Path) -> None:
    odd = {"nan": np.array([1.0, np.nan]), "table": np.ones((2, 2))}
    write_draws(tmp_path, "m", "abc", {**MOVES, **odd})
    assert read_draws(tmp_path, "m", "abc").moves.keys() == MOVES.keys()
