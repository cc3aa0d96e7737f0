"""Pages say of each number how much text it is of, as far as its evaluation says so itself."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.viewer.measured import Pages, measured

SETTINGS = {"dtype": "bfloat16", "device": "cpu"}
SOME, ALL = (Pages(512, is_all=is_all, settings=SETTINGS) for is_all in (False, True))


@pytest.mark.parametrize(
    ("entry", "pages", "on"),
    [
        ({"contexts": 128, "notes": {"n_vectors": 8062}}, SOME, "8,062 tokens of 128 contexts"),
        ({"contexts": 1, "notes": {"n_tokens": 1}}, SOME, "1 token of 1 context"),
        (
            {
                "contexts": 128,
                "settings": {"contexts": 512},
                "notes": {"n_contexts": 500, "n_tokens_tested": 9},
            },
            SOME,
            "9 tested tokens of 500 contexts",
        ),
        ({"contexts": 128, "settings": {"contexts": 512}}, SOME, "512 contexts"),
        ({"contexts": 4096}, SOME, "up to 4,096 contexts"),
        ({"contexts": 4096}, ALL, "512 contexts"),
        (
            {"contexts": 128, "settings": {"tasks": ["a", "b"]}, "notes": {"tasks": {"a": {}}}},
            SOME,
            "texts of 1 task",
        ),
        ({"contexts": 2, "dtype": "bfloat16", "device": "cpu"}, SOME, "2 contexts"),
        (
            {"contexts": 2, "dtype": "float32", "device": "cuda"},
            SOME,
            "2 contexts, dtype=float32 (these pages: bfloat16), device=cuda (these pages: cpu)",
        ),
        ({}, SOME, "contexts that it does not say"),
        ({"contexts": "x", "settings": [], "notes": 3}, SOME, "contexts that it does not say"),
    ],
)
def test_what_a_metric_was_measured_on(entry: dict[str, Any], pages: Pages, on: str) -> None:
    assert measured("density", {}, entry, pages).on == on


def test_errors_and_baselines_that_are_none_are_left_out() -> None:
    entry = {
        "standard_errors": {"a": {"value": 0.1}, "b": {"value": -0.1}, "c": 0.1, "d": {"value": 0}},
        "baselines": {"a": {"x": {"value": -2}, "y": {"value": "2"}}, "b": [1]},
    }
    found = measured("density", {}, entry, SOME)
    assert found.errors == {"a": 0.1, "d": 0}
    assert found.baselines == {"a": {"x": -2}, "b": {}}
    odd = measured("density", {}, {"standard_errors": [1], "baselines": "x"}, SOME)
    assert (odd.errors, odd.baselines) == ({}, {})
