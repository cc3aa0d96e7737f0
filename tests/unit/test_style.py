"""The house style where a number can hold it: short functions, short modules, typed arguments."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    [*ROOT.glob("scaling/**/*.py"), *ROOT.glob("analysis/**/*.py"), ROOT / "launch.py"]
)

MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 12
MAX_MODULE_LINES = 300


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def n_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def test_functions_are_short() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}:{function.name}": n_lines(function)
        for path in SOURCES
        for function in functions(path.read_text())
    }
    too_long = {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}
    assert too_long == {}
    assert statistics.median(lengths.values()) <= MAX_MEDIAN_LINES


def test_modules_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") + 1 for path in SOURCES}
    assert {name: n for name, n in lengths.items() if n > MAX_MODULE_LINES} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []
