"""The numbers of today are the numbers of the commit that wrote them down."""

from __future__ import annotations

import pytest

from scaling.plan import NUMERICS_VERSION
from tests.golden.curve import GOLDEN, golden_curve


def test_the_curve_is_unchanged() -> None:
    lines = GOLDEN.read_text().splitlines()
    assert f"numerics_version {NUMERICS_VERSION}" in lines[0]
    kept = [tuple(map(float, line.split())) for line in lines if not line.startswith("#")]
    curve = golden_curve()
    assert any(aux > 0 for _, _, aux in curve)  # dead latents were revived along the way
    assert len(kept) == len(curve)
    for found, expected in zip(curve, kept, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
